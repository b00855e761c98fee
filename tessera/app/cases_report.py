"""One page, `report.html`, of how a model did on multiple-choice cases. It needs no network and no other file."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from tessera.app import charts
from tessera.app.report import png_address, template
from tessera.data.images import open_image
from tessera.evaluate.cases.schema import Case
from tessera.evaluate.cases.scoring import Judged
from tessera.files import write_text
from tessera.study.report import Score

PAGE = "report.html"
SHOWN = 8  # cases
SIDE = 192  # pixels of a shown picture, at most
WORDS = 400  # letters of a question or reply on the page
SPLIT = 20  # cases in the table of repeats
MODES = {
    "text": "text alone", "image": "image alone", "both": "text and image", "note": "with a wrong note",
    "vignette": "with a wrong vignette",
}  # fmt: skip


@dataclass(frozen=True)
class Said:
    """A reply, and the option that it was read as; "" for none. `problem` stands where no reply came."""

    mode: str
    reply: str
    problem: str
    choice: str
    right: bool


@dataclass(frozen=True)
class Example:
    """A case and what was said of it, by mode."""

    picture: str
    question: str
    options: tuple[str, ...]
    answer: str
    replies: tuple[Said, ...]


def render(folder: str | Path, result: Mapping[str, Any], judged: Sequence[Judged]) -> Path:
    """Write `report.html` into `folder`, and give its path.

    Args:
        result: what `tessera cases run` writes as result.json.
        judged: the replies; the first cases among them are shown.
    """
    path = Path(folder) / PAGE
    write_text(path, page(result, judged))
    return path


def page(result: Mapping[str, Any], judged: Sequence[Judged]) -> str:
    """The page as text."""
    return template("cases.html.j2").render(
        result=result,
        scores=result["scores"],
        names=MODES,
        examples=examples(judged),
        track=lambda name, one: charts.interval(_score(name, one, result["scores"]["chance"]), 1.0),
        most=SPLIT,
        version=metadata.version("tessera-vl"),
    )


def examples(judged: Sequence[Judged]) -> list[Example]:
    """The first cases, with their first reply in each mode."""
    rows: dict[str, list[Judged]] = {}
    for one in judged:
        if one.answered.repeat == 0 and (one.case.id in rows or len(rows) < SHOWN):
            rows.setdefault(one.case.id, []).append(one)
    return [_example(row[0].case, row) for row in rows.values()]


def _example(case: Case, row: Sequence[Judged]) -> Example:
    seen = any(one.answered.mode != "text" for one in row) and case.images
    said = [
        Said(
            MODES[one.answered.mode], _short(one.answered.reply), _short(one.answered.problem),
            "" if one.choice is None else case.options[one.choice], one.right,
        )
        for one in row
    ]  # fmt: skip
    return Example(
        _thumbnail(case.images[0]) if seen else "", _short(case.question), case.options, case.options[case.answer],
        tuple(said),
    )  # fmt: skip


def _thumbnail(path: Path) -> str:
    picture, held = open_image(path), io.BytesIO()
    picture.thumbnail((SIDE, SIDE))
    picture.save(held, format="PNG")
    return png_address(held.getvalue())


def _short(text: str) -> str:
    return text if len(text) <= WORDS else text[: WORDS - 1] + "…"


def _score(name: str, one: Mapping[str, Any], chance: float) -> Score:
    return Score(name=name, value=one["value"], low=one["low"], high=one["high"], n=one["n"], chance=chance)
