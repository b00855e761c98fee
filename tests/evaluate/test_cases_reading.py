"""Cases from files: ours and the public vote file's fields, what is read leniently, and what is left out and named."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tessera.errors import DataError
from tessera.evaluate.cases import read_cases
from tessera.evaluate.cases.reading import number
from tests.evaluate.cases_made import OPTIONS, picture

PUBLIC = {
    "image_id": 206, "date": "apr-01-2010", "question": "What is the diagnosis?", "relevant_context": "yes",
    **{f"option_{letter}": text for letter, text in zip("ABCDE", OPTIONS, strict=True)},
    **{f"option_{letter}_votes": f"{votes}%" for letter, votes in zip("ABCDE", (12, 62, 10, 11, 6), strict=True)},
    "option_most_voted": "B", "correct_answer": "B", "total_number_votes": "85230.", "brier_score": 0.037,
}  # fmt: skip


def write(folder: Path, rows: list, name: str = "cases.json") -> Path:
    file = folder / name
    file.write_text(json.dumps(rows), encoding="utf-8")
    return file


@pytest.mark.light("medical-cases", "exact")
def test_the_public_vote_file_is_read_as_it_is(tmp_path: Path) -> None:
    shown = picture(tmp_path, 206)
    (one,) = read_cases(write(tmp_path, [PUBLIC])).cases
    assert (one.id, one.options, one.answer, one.voters) == ("206", OPTIONS, 1, 85_230)
    assert one.votes == (0.12, 0.62, 0.10, 0.11, 0.06)
    assert (one.human, one.plurality) == (0.62, True)
    assert one.brier == pytest.approx(PUBLIC["brier_score"], abs=0.0005)
    assert one.images == (shown,)
    assert dict(one.strata) == {"context is relevant": "yes", "year": "2010"}


def test_a_table_a_list_and_lines_hold_the_same_cases(tmp_path: Path) -> None:
    write(tmp_path, [PUBLIC])
    (tmp_path / "lines.jsonl").write_text(json.dumps(PUBLIC) + "\n\n", encoding="utf-8")
    with open(tmp_path / "table.csv", "w", encoding="utf-8", newline="") as file:
        csv.DictWriter(file, PUBLIC).writeheader()
        csv.DictWriter(file, PUBLIC).writerow(PUBLIC)
    found = [read_cases(tmp_path / name).cases for name in ("cases.json", "lines.jsonl", "table.csv")]
    assert found[0] == found[1] == found[2]
    assert read_cases(tmp_path).cases == found[0]


def test_our_own_fields_take_votes_by_place_name_or_text_and_skin_by_group(tmp_path: Path) -> None:
    picture(tmp_path, 1)
    own = {"question": "What?", "options": list(OPTIONS[:2]), "answer": "rubella", "image": "1.png"}
    rows = [
        {**own, "id": "a", "votes": ["38 %", "62%"], "strata": {"image type": "skin"}, "fitzpatrick": 5},
        {**own, "id": "b", "votes": {"Measles": 0.38, "Rubella": 0.62}, "image": ["1.png", "1.png"]},
        {**own, "id": "c", "votes": {"A": "1,900", "B": "3,100"}, "answer": 1},
        {**own, "id": "d", "options": {"x": "Measles", "y": "Rubella"}, "answer": "y"},
    ]
    a, b, c, d = read_cases(write(tmp_path, rows)).cases
    assert a.votes == b.votes == c.votes == (0.38, 0.62) and d.votes is None
    assert [one.answer for one in (a, b, c, d)] == [1] * 4
    assert dict(a.strata) == {"image type": "skin", "skin tone": "dark (5-6)"}
    assert len(b.images) == 2


@pytest.mark.parametrize(
    ("text", "value"),
    [("12%", 12), ("12.", 12), (" 12 % ", 12), ("12.%", 12), (0.5, 0.5), (".5", 0.5), ("85230.", 85_230),
     ("165,436", 165_436), ("12%.", 12)],
)  # fmt: skip
def test_numbers_of_votes_are_read_leniently(text: object, value: float) -> None:
    assert number(text) == value


@pytest.mark.parametrize("text", ["many", "-3%", "", "12 14", "1,2,3", "nan", None, True, "%", "."])
def test_what_is_no_number_of_votes_is_none(text: object) -> None:
    with pytest.raises(ValueError, match="is no number of votes"):
        number(text)


BAD = {
    "no answer": ({"correct_answer": ""}, "it has no right answer"),
    "another answer": ({"correct_answer": "F"}, "its right answer 'F' is none of its options"),
    "one option": ({f"option_{letter}": "" for letter in "BCDE"}, "it has fewer than two options"),
    "two alike": ({"option_C": "measles"}, "two of its options are alike"),
    "nothing to ask": ({"question": ""}, "it has neither a question nor a picture"),
    "no picture": ({"image": "gone.png"}, "gone.png: no such picture"),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_case_that_cannot_be_used_is_left_out_and_named(bad: str, tmp_path: Path) -> None:
    change, reason = BAD[bad]
    rows = [PUBLIC | change, PUBLIC | {"image_id": 7}, PUBLIC | {"image_id": 8}]
    found = read_cases(write(tmp_path, rows))
    assert [one.id for one in found.cases] == ["7", "8"]
    assert list(found.skipped) == ["206"] and reason in found.skipped["206"]


@pytest.mark.parametrize(
    ("votes", "reason"),
    [("many", "'many' is no number of votes"), ("", "the votes for C are missing"), ("60%", "the votes sum to 151%")],
)
def test_votes_that_do_not_parse_cost_the_case_its_votes_alone(votes: str, reason: str, tmp_path: Path) -> None:
    found = read_cases(write(tmp_path, [PUBLIC | {"option_C_votes": votes}]))
    assert found.cases[0].votes is None and found.cases[0].voters is None
    assert found.unread == {"206": reason}


def test_a_total_that_does_not_parse_costs_no_votes(tmp_path: Path) -> None:
    found = read_cases(write(tmp_path, [PUBLIC | {"total_number_votes": "a lot"}]))
    assert found.cases[0].votes is not None
    assert "'a lot' is no number of votes" in found.unread["206"]


def test_an_id_that_comes_twice_is_left_out_the_second_time(tmp_path: Path) -> None:
    found = read_cases(write(tmp_path, [PUBLIC, PUBLIC | {"correct_answer": "A"}]))
    assert [one.answer for one in found.cases] == [1]
    assert found.skipped == {"206 (row 2)": "another case has the same id"}


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("cases.json", "[]", "holds no case"),
        ("cases.json", '{"a": 1}', "is no list of cases"),
        ("cases.json", "[1, 2]", "2 of 2 cases cannot be used"),
        ("cases.jsonl", "{", "is not valid JSON: line 1"),
        ("cases.tsv", "a", "unknown format '.tsv'"),
        ("notes.txt", "a", "holds 0 files of cases"),
    ],
)
def test_files_that_hold_no_cases_are_refused(name: str, text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=sentence):
        read_cases(tmp_path if name == "notes.txt" else tmp_path / name)
    with pytest.raises(DataError, match="no such file or folder"):
        read_cases(tmp_path / "gone.json")
