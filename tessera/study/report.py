"""What a training run has to show: scores, pictures, words, curves. Plain values, written as `report.json`.

A recipe fills a `Report` and calls `write`; `tessera.app.report` makes a page of it. Pictures are PNG files
in the folder `pictures` beside the JSON, named by `keep_picture`. The page says that its samples were taken
as they came: take the first held-out ones in their order, and choose none.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from PIL import Image

from tessera.errors import DataError
from tessera.files import write_json

FILE = "report.json"
PICTURES = "pictures"
VERSION = 1
_Made = TypeVar("_Made")


@dataclass(frozen=True, kw_only=True)
class Score:
    """A measured value with its 95 % interval. `floor` is what it should reach, `chance` what guessing gives.

    A `percent` score is a share in [0, 1] and is shown in per cent. `n` counts what it was measured on.
    """

    name: str
    value: float
    low: float
    high: float
    n: int
    floor: float | None = None
    chance: float | None = None
    percent: bool = True
    higher_is_better: bool = True
    headline: bool = False
    about: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether the floor is reached; None where there is none."""
        if self.floor is None:
            return None
        return self.value >= self.floor if self.higher_is_better else self.value <= self.floor


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """A held-out picture before and after the model's own tokens of it."""

    original: str
    rebuilt: str
    right: bool | None = None
    verdict: str = ""


@dataclass(frozen=True, kw_only=True)
class Captioned:
    """A held-out picture, what it truly shows, and what the model says."""

    picture: str
    truth: str
    said: str
    right: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Answered:
    """A question about a held-out picture, its true answer and the model's."""

    picture: str
    question: str
    truth: str
    said: str
    right: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """What the model drew for a prompt it never met, and what an independent reader sees in it."""

    prompt: str
    picture: str
    right: bool | None = None
    verdict: str = ""


@dataclass(frozen=True, kw_only=True)
class Album:
    """Held-out samples of a further world under a heading of their own; `about` also says why there are none."""

    title: str
    about: str
    captions: tuple[Captioned, ...] = ()
    drawings: tuple[Drawn, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Part:
    """A run of words or a picture of a page; `by_model` where the model made it."""

    text: str | None = None
    picture: str | None = None
    by_model: bool = False


@dataclass(frozen=True, kw_only=True)
class Page:
    """Words and pictures in reading order."""

    title: str
    parts: tuple[Part, ...]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A value by training step. Curves of one `panel` are drawn together."""

    panel: str
    name: str
    steps: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class StageTime:
    """How long a stage took."""

    name: str
    steps: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class NextCommand:
    """A command to try, and what it does."""

    command: str
    does: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything on the page, in its order. Empty sections are left out of it."""

    title: str
    summary: str
    command: str
    scores: tuple[Score, ...] = ()
    reconstructions: tuple[Reconstruction, ...] = ()
    captions: tuple[Captioned, ...] = ()
    answers: tuple[Answered, ...] = ()
    drawings: tuple[Drawn, ...] = ()
    albums: tuple[Album, ...] = ()
    pages: tuple[Page, ...] = ()
    in_context: tuple[Page, ...] = ()
    curves: tuple[Curve, ...] = ()
    stages: tuple[StageTime, ...] = ()
    machine: Mapping[str, str] = field(default_factory=dict)
    next_commands: tuple[NextCommand, ...] = ()
    notes: tuple[str, ...] = ()
    version: int = VERSION

    def write(self, folder: str | Path) -> Path:
        """Write `report.json` into `folder`; a number that is none (a curve's) becomes null."""
        path = Path(folder) / FILE
        write_json(path, _plain(dataclasses.asdict(self)))
        return path


def keep_picture(folder: str | Path, image: Image.Image) -> str:
    """Keep a picture for the report in `folder`, and give the name to put into it."""
    held = io.BytesIO()
    image.convert("RGB").save(held, format="PNG")
    name = f"{PICTURES}/{hashlib.sha256(held.getvalue()).hexdigest()[:16]}.png"
    path = Path(folder) / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".writing")
        aside.write_bytes(held.getvalue())
        aside.rename(path)
    return name


def read_report(folder: str | Path) -> Report:
    """The report that was written into `folder`.

    Raises:
        DataError: there is none, or it is damaged or of another version.
    """
    path = Path(folder) / FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; a finished training run writes it") from None
    except ValueError:
        raise DataError(f"{path} is not valid JSON") from None
    if not isinstance(values, dict) or values.get("version") != VERSION:
        raise DataError(f"{path} is not a report of version {VERSION}")
    made: Report = _build(Report, values, str(path))
    return made


def _plain(value: Any) -> Any:
    """`value` without numbers that JSON lacks."""
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def _build(hint: Any, value: Any, place: str) -> Any:
    """`value` from JSON as the type `hint`; `place` names it in a mistake."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return None if value is None else _build(inner[0], value, place)
    if origin is tuple:
        _check(isinstance(value, list), "a list", place)
        return tuple(_build(inner[0], one, f"{place}[{number}]") for number, one in enumerate(value))
    if dataclasses.is_dataclass(hint):
        return _build_dataclass(hint, value, place)
    if hint is float:
        _check(
            value is None or (isinstance(value, int | float) and not isinstance(value, bool)),
            "a number",
            place,
        )
        return float("nan") if value is None else float(value)
    if origin is not None:  # Mapping[str, str]
        _check(isinstance(value, dict), "an object", place)
        return {str(name): str(text) for name, text in value.items()}
    _check(isinstance(value, hint), hint.__name__, place)
    return value


def _build_dataclass(hint: Any, value: Any, place: str) -> Any:
    _check(isinstance(value, dict), "an object", place)
    hints = get_type_hints(hint)
    unknown = sorted(set(value) - set(hints))
    _check(not unknown, f"known fields (not {', '.join(unknown)})", place)
    needed = [one.name for one in dataclasses.fields(hint) if _has_no_default(one) and one.name not in value]
    _check(not needed, f"the fields {', '.join(needed)}", place)
    return hint(**{name: _build(hints[name], inner, f"{place}.{name}") for name, inner in value.items()})


def _has_no_default(one: dataclasses.Field[Any]) -> bool:
    return one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING


def _check(fits: bool, wanted: str, place: str) -> None:
    if not fits:
        raise DataError(f"{place} should be or have {wanted}; the report is damaged or of another version")


def thin(steps: Sequence[int], values: Sequence[float], most: int = 240) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """At most `most` points of a curve: means of equal runs of steps, at their last step."""
    length = -(-len(steps) // most) or 1
    runs = [slice(start, start + length) for start in range(0, len(steps), length)]
    means = tuple(sum(values[run]) / len(values[run]) for run in runs)
    return tuple(steps[run][-1] for run in runs), means
