"""Options of a command from the fields of a dataclass, so that there is one source of truth.

    @dataclass
    class Show:
        '''What it is.'''
        slug: str = argument("the paper's short name")
        json: bool = option("print JSON", False)

Mistakes become one sentence (`UserError`) that names the nearest option or choice. A field may be a str,
int, float, bool, Path, Literal of strings, `X | None`, `tuple[X, ...]`, or `dict[str, str]` (as `key=value`).
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from tessera.errors import UserError, nearest
from tessera.files import check_file

_Options = TypeVar("_Options")
LARGEST = 2**63 - 1  # of a bounded whole number: what a random generator takes as its seed
_KINDS = {int: "a whole number", float: "a number", Path: "a path", str: "text"}


def option(
    text: str, default: Any = dataclasses.MISSING, *, least: int | None = None, file: bool = False
) -> Any:  # fmt: skip
    """A field that is given as `--name VALUE`; without a default it must be given. A number is at least `least`, a path
    with `file` is one where the command's result can be written."""
    factory = {"default_factory": dict} if default == {} else {"default": default}
    return dataclasses.field(**factory, metadata={"help": text, "least": least, "file": file}, kw_only=True)


def argument(text: str, default: Any = dataclasses.MISSING, *, metavar: str | None = None) -> Any:
    """A field that is given by its place on the line."""
    return dataclasses.field(default=default, metadata={"help": text, "metavar": metavar, "positional": True})


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        what = message.replace("the following arguments are required: ", "needs ").replace("argument ", "")
        raise UserError(f"{self.prog}: {what}; see `{self.prog} --help`")


def _converter(kind: type, flag: str, least: int | None) -> Any:
    bound = "" if least is None else f" of {least} or more"

    def convert(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or (least is not None and not least <= value <= LARGEST):
            raise UserError(f"{flag} takes {_KINDS[kind]}{bound}, not {text!r}")
        return value

    return convert


def _new_file(flag: str) -> Any:
    def check(text: str) -> Path:
        try:
            return check_file(text)
        except UserError as error:
            raise UserError(f"{flag}: {error}") from None

    return check


def _chooser(choices: Sequence[str], flag: str) -> Any:
    def choose(text: str) -> str:
        if text not in choices:
            raise UserError(f"{flag} does not know {text!r}{nearest(text, choices)}")
        return text

    return choose


def _key_value(text: str) -> tuple[str, str]:
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise UserError(f"{text!r} is not of the form key=value")
    return key, value


def _shape(hint: Any, flag: str, least: int | None = None) -> dict[str, Any]:
    """What argparse needs to know of a field's type."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _shape(next(one for one in inner if one is not type(None)), flag, least)
    if origin is Literal:
        return {"type": _chooser(inner, flag), "metavar": "|".join(inner)}
    if origin is tuple:
        return {**_shape(inner[0], flag), "nargs": "+"}
    if origin is dict:
        return {"type": _key_value, "nargs": "+", "metavar": "KEY=VALUE"}
    if hint is bool:
        return {"action": "store_true"}
    return {"type": _converter(hint, flag, least), "metavar": hint.__name__.upper()}


def _default(field: dataclasses.Field[Any]) -> Any:
    made = field.default_factory
    return field.default if made is dataclasses.MISSING else made()


def _add(parser: argparse.ArgumentParser, field: dataclasses.Field[Any], hint: Any) -> None:
    positional = field.metadata.get("positional", False)
    flag = field.name.upper() if positional else "--" + field.name.replace("_", "-")
    shape = _shape(hint, flag, field.metadata.get("least"))
    if field.metadata.get("metavar"):
        shape["metavar"] = field.metadata["metavar"]
    if field.metadata.get("file"):
        shape["type"] = _new_file(flag)
    required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    default = None if required else _default(field)
    text = field.metadata["help"]
    if not positional and not required and field.default not in (None, False, (), dataclasses.MISSING):
        text += f" (default {field.default})"
    if positional:
        shape["metavar"] = shape.get("metavar") if field.metadata.get("metavar") else flag
        if not required and "nargs" not in shape:
            shape["nargs"] = "?"
        parser.add_argument(field.name, help=text, default=default, **shape)
    else:
        if "nargs" in shape:  # a flag given twice adds to what it was given before, not to the default
            shape["action"], default = "extend", None
        parser.add_argument(flag, dest=field.name, help=text, default=default, required=required, **shape)


def parser_of(options: type[Any], prog: str) -> argparse.ArgumentParser:
    """The argument parser of a dataclass; its docstring is the description."""
    parser = _Parser(
        prog=prog,
        description=options.__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    hints = get_type_hints(options)
    for field in dataclasses.fields(options):
        _add(parser, field, hints[field.name])
    return parser


def parse(options: type[_Options], arguments: Sequence[str], prog: str) -> _Options:
    """Fill the dataclass `options` from `arguments`.

    Raises:
        UserError: an unknown option (the nearest is named), a missing one, or a value of the wrong type.
        SystemExit: after `--help`.
    """
    parser = parser_of(options, prog)
    flags = [flag for action in parser._actions for flag in action.option_strings]
    for given in arguments:
        if given == "--":
            break
        name = given.partition("=")[0]
        if name.startswith("--") and name not in flags:
            close = difflib.get_close_matches(name, flags, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"see `{prog} --help`"
            raise UserError(f"{prog} has no option {name!r}; {hint}")
    found = vars(parser.parse_args(arguments))
    hints = get_type_hints(options)
    for name, value in found.items():
        if isinstance(value, list):
            found[name] = dict(value) if get_origin(hints[name]) is dict else tuple(value)
    return options(**{name: value for name, value in found.items() if value is not None or _optional(hints[name])})


def _optional(hint: Any) -> bool:
    return type(None) in get_args(hint)
