"""Cases from a user's files: `.jsonl`, `.json` or `.csv`, or a folder with one of them and pictures.

Ours:   {"id": "7", "question": "What is it?", "options": ["Measles", "Rubella"], "answer": "Measles",
         "image": "pictures/7.png", "votes": ["62%", 38], "strata": {"image type": "skin"}}
Theirs: the public vote file of the NEJM image challenge (cx0/nejm-image-challenge): image_id, date, question,
        relevant_context, option_A ..., option_A_votes ... ("12%"), correct_answer ("B"), total_number_votes ("85230.").
        It has no pictures; a user's own lie beside it, or in `images/`, under the image_id: 206.png.

A case that cannot be used is left out, counted and named; votes that cannot be read are, and the case is kept.
"""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tessera.data.images import SUFFIXES
from tessera.data.quality import allowed, check_text
from tessera.data.readers.files import read_json, read_json_lines
from tessera.errors import BadSample, DataError
from tessera.evaluate.cases.schema import LETTERS, Case, CaseSet

FORMATS = (".jsonl", ".json", ".csv")
MAX_BAD = 0.05  # share of cases that may be left out; see `allowed` for small sets
_IDS = ("id", "image_id", "case_id")
_QUESTIONS = ("question", "prompt", "text")
_ANSWERS = ("answer", "correct_answer", "correct")
_PICTURES = ("image", "images", "file_name")
_VOTERS = ("voters", "total_number_votes")
_FIELDS = {"relevant_context": "context is relevant", "image_type": "image type"}  # divisions by the field's name
_SKIN = ("fitzpatrick", "skin_tone")
_TONES = {"1": "light (1-2)", "2": "light (1-2)", "3": "intermediate (3-4)", "4": "intermediate (3-4)",
          "5": "dark (5-6)", "6": "dark (5-6)"}  # fmt: skip
_log = logging.getLogger("tessera.data")


def read_cases(path: str | Path) -> CaseSet:
    """The cases of a file or folder.

    Raises:
        DataError: there is no such file, it is of another format, no case in it can be used, or too many cannot.
    """
    file = _file(Path(path))
    cases: dict[str, Case] = {}
    skipped: dict[str, str] = {}
    unread: dict[str, str] = {}
    rows = _rows(file)
    for number, row in enumerate(rows, start=1):
        name = _first(row, _IDS) if isinstance(row, Mapping) else None
        id = f"row {number}" if name is None else str(name)
        try:
            if id in cases:
                raise BadSample("another case has the same id")
            cases[id] = _case(id, row, file.parent, unread)
        except BadSample as error:
            skipped[id if id not in cases else f"{id} (row {number})"] = str(error)
    _judge(file, len(rows), skipped)
    for what, names in (("left out", skipped), ("has votes that cannot be read", unread)):
        for id, why in names.items():
            _log.warning("%s: case %s %s: %s", file, id, what, why)
    return CaseSet(str(file), tuple(cases.values()), skipped, unread)


def _judge(file: Path, total: int, skipped: Mapping[str, str]) -> None:
    if not total:
        raise DataError(f"{file} holds no case")
    limit = allowed(total, total, MAX_BAD)
    if len(skipped) > limit or len(skipped) == total:
        id, why = next(iter(skipped.items()))
        raise DataError(
            f"{file}: {len(skipped)} of {total} cases cannot be used, more than the {limit} allowed; the first is {id}:"
            f" {why}; repair or remove them"
        )


def _file(path: Path) -> Path:
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if path.is_dir():
        named = [path / f"cases{suffix}" for suffix in FORMATS if (path / f"cases{suffix}").is_file()]
        found = named[:1] or sorted(one for one in path.iterdir() if one.suffix.lower() in FORMATS)
        if len(found) != 1:
            raise DataError(f"{path} holds {len(found)} files of cases; give one of them, or name it cases.jsonl")
        return found[0]
    if path.suffix.lower() not in FORMATS:
        raise DataError(f"{path}: unknown format {path.suffix!r}; cases are {', '.join(FORMATS)}")
    return path


def _rows(file: Path) -> list[Any]:
    if file.suffix.lower() == ".csv":
        try:
            with open(file, encoding="utf-8-sig", newline="") as opened:
                return list(csv.DictReader(opened))
        except (csv.Error, UnicodeDecodeError):
            raise DataError(f"{file} cannot be read as a UTF-8 table of comma-separated values") from None
    rows = read_json_lines(file) if file.suffix.lower() == ".jsonl" else read_json(file)
    if isinstance(rows, Mapping):
        rows = rows.get("cases")
    if not isinstance(rows, list):
        raise DataError(f"{file} is no list of cases")
    return rows


def _first(row: Mapping[str, Any], names: Sequence[str]) -> Any:
    """The first of these fields that holds something."""
    return next((row[name] for name in names if row.get(name) not in (None, "", [])), None)


def _case(id: str, row: Any, folder: Path, unread: dict[str, str]) -> Case:
    if not isinstance(row, Mapping):
        raise BadSample("it is no record with named fields")
    options = _options(row)
    question = _first(row, _QUESTIONS)
    if question is not None:
        question = check_text(str(question)).strip()
    images = _images(id, row, folder)
    if question is None and not images:
        raise BadSample("it has neither a question nor a picture")
    answer = _answer(row, options)
    votes = voters = None
    try:
        votes = _votes(row, options)
        voters = _voters(row)
    except ValueError as error:  # a total that cannot be read costs no votes
        unread[id] = str(error)
    return Case(
        id, question or "", tuple(options.values()), answer, images, votes, voters, strata=dict(_strata(row))
    )  # fmt: skip


def _options(row: Mapping[str, Any]) -> dict[str, str]:
    """Options by letter, or by the name that the row has for them."""
    given = row.get("options")
    if given is None:
        lettered = ((letter, row.get(f"option_{letter}")) for letter in LETTERS)
        given = {letter: text for letter, text in lettered if text not in (None, "")}
    elif isinstance(given, list):
        if len(given) > len(LETTERS):
            raise BadSample(f"it has {len(given)} options; at most {len(LETTERS)} can be told apart by a letter")
        given = dict(zip(LETTERS, given, strict=False))
    if not isinstance(given, Mapping) or len(given) < 2:
        raise BadSample("it has fewer than two options")
    found = {str(name).strip(): " ".join(str(text).split()) for name, text in given.items()}
    if len({text.casefold() for text in found.values()}) < len(found) or "" in found.values():
        raise BadSample("two of its options are alike, or one is empty")
    return found


def _answer(row: Mapping[str, Any], options: Mapping[str, str]) -> int:
    """The place of the right option, which is given by its text, its letter or name, or its place as a number from
    0."""
    given = _first(row, _ANSWERS)
    if given is None:
        raise BadSample("it has no right answer")
    if isinstance(given, int) and not isinstance(given, bool) and 0 <= given < len(options):
        return given
    text = " ".join(str(given).split()).casefold()
    for names in (options.values(), options.keys(), LETTERS[: len(options)]):
        places = [place for place, name in enumerate(names) if name.casefold() == text]
        if places:
            return places[0]
    raise BadSample(f"its right answer {given!r} is none of its options")


def _images(id: str, row: Mapping[str, Any], folder: Path) -> tuple[Path, ...]:
    given = _first(row, _PICTURES)
    if given is None:
        beside = (place / f"{id}{suffix}" for place in (folder, folder / "images") for suffix in SUFFIXES)
        return tuple(path for path in beside if re.fullmatch(r"[\w.-]+", id) and path.is_file())[:1]
    names = given if isinstance(given, list) else [given]
    paths = [folder / str(name) for name in names]
    for path in paths:
        if not path.is_file():
            raise BadSample(f"{path}: no such picture")
    return tuple(paths)


def number(text: Any) -> float:
    """A number as people write it in tables: 12, "12%", "12 %", "0.12", "85230.", "165,436".

    Raises:
        ValueError: it is none, or is negative.
    """
    found = re.fullmatch(r"\+?(\d{1,3}(?:,\d{3})+|\d+)?(\.\d*)?\s*%?\.?", str(text).strip())
    if isinstance(text, bool) or found is None or not any(one.isdigit() for one in str(text)):
        raise ValueError(f"{text!r} is no number of votes")
    return float((found[1] or "0").replace(",", "") + (found[2] or ""))


def _votes(row: Mapping[str, Any], options: Mapping[str, str]) -> tuple[float, ...] | None:
    """The share of votes of each option. Numbers with a per cent sign, and without one those that sum to about 100, are
    per cents; those that sum to about 1 are shares; others are counts.

    Raises:
        ValueError: a number cannot be read, is missing, or nobody voted.
    """
    given = row.get("votes")
    if isinstance(given, list):
        given = dict(zip(options, given, strict=False)) if len(given) == len(options) else {}
    elif given is None:
        given = {name: row.get(f"option_{name}_votes") for name in options}
        if all(value in (None, "") for value in given.values()):
            return None
    if not isinstance(given, Mapping):
        raise ValueError(f"the votes {given!r} are neither a list nor named by option")
    written = [given.get(name, given.get(text)) for name, text in options.items()]
    missing = [name for name, value in zip(options, written, strict=True) if value in (None, "")]
    if missing:
        raise ValueError(f"the votes for {', '.join(missing)} are missing")
    values = [number(value) for value in written]
    total = sum(values)
    if not total:
        raise ValueError("the votes are all 0")
    signed = any("%" in str(value) for value in written)
    scale = 100.0 if signed or 90 <= total <= 110 else 1.0 if 0.9 <= total <= 1.1 else total
    shares = tuple(value / scale for value in values)
    if not 0.9 <= sum(shares) <= 1.1:
        raise ValueError(f"the votes sum to {sum(shares):.0%}")
    return shares


def _voters(row: Mapping[str, Any]) -> int | None:
    given = _first(row, _VOTERS)
    return None if given is None else int(number(given))


def _strata(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    given = row.get("strata")
    if isinstance(given, Mapping):
        yield from ((str(name), str(value)) for name, value in given.items() if value not in (None, ""))
    for name, value in row.items():
        if isinstance(name, str) and name.startswith("stratum_") and value not in (None, ""):
            yield name.removeprefix("stratum_").replace("_", " "), str(value)
    for name, title in _FIELDS.items():
        if row.get(name) not in (None, ""):
            yield title, str(row[name]).strip().lower()
    tone = str(_first(row, _SKIN) or "").strip().removesuffix(".0")
    if tone:
        yield "skin tone", _TONES.get(tone, tone)
    year = re.search(r"(?<!\d)(?:19|20)\d\d(?!\d)", str(row.get("date") or ""))
    if year:
        yield "year", year[0]
