"""What a user names: fields of a recipe, as `--set align.batch=256 tokenizer.depth=4` asks, and roles of `--parts`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from tessera.errors import UserError, nearest

R = TypeVar("R")
CONFIG = "config"  # key of a field's metadata: the class whose fields the mapping holds
_SWITCH = {"true": True, "false": False}


def change(recipe: R, settings: Mapping[str, str]) -> R:
    """`recipe`, a frozen dataclass, with some of its fields changed.

    A field of a dataclass within, or of a mapping whose metadata name a `CONFIG` class, is named `outer.inner`.

    Raises:
        UserError: an unknown name, or a value that is none of its type.
    """
    known = _names(recipe)
    for name, text in settings.items():
        if name not in known:
            raise UserError(f"there is no setting {name!r}{nearest(name, known)}")
        recipe = _with(recipe, name.split("."), _read(name, known[name], text))
    return recipe


def check_roles(parts: Mapping[str, str], roles: Iterable[str]) -> None:
    """Raise UserError for a role of `--parts` that is none of `roles`, with the nearest of them."""
    known = list(roles)
    for role in parts:
        if role not in known:
            raise UserError(f"--parts has no role {role!r} here{nearest(role, known)}")


def _with(held: Any, path: list[str], value: Any) -> Any:
    """`held`, a frozen dataclass or a mapping, with the value that `path` leads to changed."""
    first, *further = path
    if not is_dataclass(held):
        return {**held, first: value}
    new = _with(getattr(held, first), further, value) if further else value
    return replace(held, **{first: new})  # type: ignore[type-var]


def _names(recipe: Any) -> dict[str, Any]:
    """Every name that may be set, with its type."""
    found: dict[str, Any] = {}
    hints = get_type_hints(type(recipe))
    for field in fields(recipe):
        held = getattr(recipe, field.name)
        if CONFIG in field.metadata:
            own = field.metadata[CONFIG].__annotations__  # transformers' configurations hold types there, not strings
            found |= {f"{field.name}.{name}": hint for name, hint in own.items()}
        elif is_dataclass(held):
            found |= {f"{field.name}.{name}": hint for name, hint in _names(held).items()}
        else:
            found[field.name] = hints[field.name]
    return {name: hint for name, hint in found.items() if _plain(hint)}


def _plain(hint: Any) -> bool:
    return hint in (int, float, bool, str, int | list[int]) or get_origin(hint) in (Literal, tuple)


def _read(name: str, hint: Any, text: str) -> Any:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        if text not in inner:
            raise UserError(f"{name} cannot be {text!r}{nearest(text, inner)}")
        return text
    if hint == int | list[int]:
        numbers = [_read(name, int, part) for part in text.split(",")]
        return numbers if len(numbers) > 1 else numbers[0]
    if origin is tuple:
        parts = text.split(",")
        if len(parts) != len(inner):
            raise UserError(f"{name} takes {len(inner)} values with a comma between, not {text!r}")
        return tuple(_read(name, one, part) for one, part in zip(inner, parts, strict=True))
    try:
        return _SWITCH[text.lower()] if hint is bool else hint(text)
    except (ValueError, KeyError):
        what = {int: "a whole number", float: "a number", bool: "true or false"}[hint]
        raise UserError(f"{name} takes {what}, not {text!r}") from None
