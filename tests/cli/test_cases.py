"""`tessera cases`: one command from a file of cases to a page, of a model or an endpoint; and its mistakes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tessera.cli import main
from tessera.evaluate.intervals import exact_binomial
from tests.evaluate.cases_made import OPTIONS, picture
from tests.evaluate.chat_server import ChatServer, Fault, pictures_of, text_of

Refused = Callable[..., str]
NASTY = "<script>alert(1)</script>"


@pytest.fixture
def cases(here: Path) -> Path:
    """Eight cases with pictures, votes and a stratum; the last has no right answer, the first votes in words."""
    rows = []
    for number in range(8):
        picture(here, number)
        votes = ["40%" if place == number % 5 else "15%" for place in range(5)]
        rows.append(
            {"id": str(number), "question": f"case {number} {NASTY}", "options": OPTIONS, "image": f"{number}.png",
             "answer": OPTIONS[number % 5] if number < 7 else None, "votes": votes if number else ["many"] * 5,
             "voters": 1000, "strata": {"image type": "skin" if number % 2 else "eye"}}
        )  # fmt: skip
    (here / "cases.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return here / "cases.jsonl"


@pytest.fixture(autouse=True)
def direct(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.mark.light("medical-cases", "use")
def test_one_command_asks_an_endpoint_and_writes_replies_scores_and_a_page(
    cases: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    right = {f"case {number} ": OPTIONS[number % 5] for number in range(8)}

    def reply(body: dict) -> str:
        said = next((option for words, option in right.items() if words in text_of(body)), NASTY)
        return f"[['{said}']]"

    with ChatServer(reply) as server:
        line = ["cases", "run", str(cases), "--endpoint", server.url, "--model-name", "tiny", "--out", "run"]
        assert main([*line, "--modes", "text", "image", "both", "note", "--repeats", "2"]) == 0
        said = capsys.readouterr().out
        count = len(server.bodies)
        assert count == 7 * 4 * 2
        assert main([*line, "--modes", "text", "image", "both", "note", "--repeats", "2", "--json"]) == 0
        assert len(server.bodies) == count, "what was answered is not asked again"
    assert "100.0%" in said and "readers, mean share" in said
    assert "1 left out: 7 (it has no right answer)" in said
    assert "1 with votes that cannot be read: 0 ('many' is no number of votes)" in said
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads((here / "run/result.json").read_text(encoding="utf-8"))
    modes = result["scores"]["modes"]
    assert {name: one["accuracy"]["value"] for name, one in modes.items()} == {
        "text": 1,
        "image": 0,
        "both": 1,
        "note": 1,
    }
    assert modes["image"]["no response"]["value"] == 1
    assert result["scores"]["readers"]["cases"] == 6
    assert {table["division"] for table in result["scores"]["strata"]} >= {"image type"}
    page = (here / "run/report.html").read_text(encoding="utf-8")
    assert NASTY not in page and "&lt;script&gt;" in page
    assert not re.findall(r'(?:src|href)="(?!data:)', page), "it loads nothing from elsewhere"
    for heading in ("Accuracy", "No response", "Beside human readers", "Wrong hints", "Repeats", "Left out"):
        assert f"<h2>{heading}</h2>" in page
    assert page.count("data:image/png;base64,") == 7
    assert f"read as {OPTIONS[0]}" in page, "what a reply was read as stands beside it"
    assert "no response: chooses no option" in page and "Shown image alone no case was answered" in page


def by_its_note(text: str) -> str | None:
    """The option that has the most words in common with the case's text; None without a text, or where two have."""
    case = next((line for line in text.splitlines() if line.startswith("Case: ")), "")
    options = re.findall(r"^[A-E]\. (.+)$", text, re.MULTILINE)
    shared = [len(set(one.split()) & set(re.findall(r"\w+", case))) for one in options]
    return options[shared.index(max(shared))] if shared.count(max(shared)) == 1 else None


@pytest.mark.light("medical-cases", "use")
def test_two_hundred_cases_are_driven_once_through_a_local_server(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cases", "write", "--out", "made", "--count", "200", "--leak", "0.5"]) == 0
    rows = [json.loads(line) for line in (here / "made/cases.jsonl").read_text(encoding="utf-8").splitlines()]
    asked = ["\n".join([f"Case: {row['question']}", *(f"A. {one}" for one in row["options"])]) for row in rows]
    chosen = [by_its_note(text) for text in asked]
    right = sum(one == row["answer"] for one, row in zip(chosen, rows, strict=True))
    with ChatServer(lambda body: f"[['{by_its_note(text_of(body))}']]") as server:
        line = ["cases", "run", "made", "--endpoint", server.url, "--model-name", "reader", "--together", "25"]
        assert main([*line, "--out", "run"]) == 0
        pictures = [len(pictures_of(body)) for body in server.bodies]
    said = capsys.readouterr().out
    assert (pictures.count(0), pictures.count(1), len(pictures)) == (200, 400, 600)
    assert "no response, shown image: 200 a reply that chooses no option" in said
    result = json.loads((here / "run/result.json").read_text(encoding="utf-8"))["scores"]
    modes = result["modes"]
    assert modes["text"]["accuracy"] == modes["both"]["accuracy"] == exact_binomial(right, 200).to_json()
    assert (
        modes["image"]["no response"]["value"] == 1
        and modes["text"]["no response"]["value"] == chosen.count(None) / 200
    )
    assert 0 < chosen.count(None) < 200 and 60 < right < 190 and result["readers"]["cases"] == 200


def test_reasons_that_are_not_printed_are_counted(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cases", "write", "--out", "made", "--count", "8"]) == 0
    said = iter(["no", *(Fault(400, message=f"rule {number}") for number in (1, 2, 2, 3, 3, 4, 4))])
    with ChatServer(lambda _: next(said)) as server:
        line = ["cases", "run", "made", "--endpoint", server.url, "--model-name", "m", "--modes", "image"]
        assert main([*line, "--together", "1", "--out", "run"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("no response")]
    assert len(lines) == 1 and lines[0].endswith("rule 4, 2 for reasons that result.json lists")


@pytest.mark.light("medical-cases", "use")
def test_a_trained_model_is_asked_through_its_folder(
    cases: Path, here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.vision_chat_tiny import vision_chat

    vision_chat().save(tmp_path / "model")
    line = ["cases", "run", str(cases), "--model", str(tmp_path / "model"), "--style", "bare", "--json"]
    assert main([*line, "--modes", "text", "both"]) == 0
    modes = json.loads(capsys.readouterr().out)["scores"]["modes"]
    assert {name: one["accuracy"]["n"] for name, one in modes.items()} == {"text": 7, "both": 7}
    assert (here / "runs/cases/report.html").is_file()
    assert main([*line, "--modes", "both", "--temperature", "0.7", "--repeats", "2", "--out", "drawn"]) == 0
    first = (here / "drawn/replies.jsonl").read_text(encoding="utf-8").splitlines()[1:]
    assert main([*line, "--modes", "both", "--temperature", "0.7", "--repeats", "2", "--out", "again"]) == 0
    again = (here / "again/replies.jsonl").read_text(encoding="utf-8").splitlines()[1:]
    assert [json.loads(one)["reply"] for one in first] == [json.loads(one)["reply"] for one in again]


def test_written_cases_have_votes_that_are_summed_up(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cases", "write", "--out", "made", "--count", "3", "--leak", "1"]) == 0
    assert capsys.readouterr().out == "cases: made/cases.jsonl\n"
    assert main(["cases", "votes", "made"]) == 0
    said = capsys.readouterr().out
    assert "mean share of right votes" in said and "the most voted option is right" in said
    assert main(["cases", "votes", "made/cases.jsonl", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cases"] == 3


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("cases.jsonl", "name one who is asked: --model FOLDER, or --endpoint URL with --model-name NAME"),
        ("cases.jsonl --model m --endpoint http://x/v1", "name one who is asked"),
        ("cases.jsonl --endpoint http://127.0.0.1:1/v1", "--endpoint needs --model-name"),
        ("cases.jsonl --endpoint 127.0.0.1 --model-name m", "is no http address"),
        ("cases.jsonl --endpoint http://127.0.0.1:1/v1 --model-name m", "nothing answers at http://127.0.0.1:1/v1"),
        ("cases.jsonl --endpoint http://x --model-name m --timeout 0", "--timeout takes a number above 0"),
        ("cases.jsonl --model m --modes txt", "there is no mode 'txt'; did you mean 'text'?"),
        ("cases.jsonl --model m --style plane", "there is no style of prompts 'plane'; did you mean 'plain'?"),
        ("cases.jsonl --model m --temperature -1", "a temperature of 0 or more"),
        ("cases.jsonl --model no/model", "no/model is no model folder of Tessera"),
        ("gone.jsonl --model m", "gone.jsonl: no such file or folder"),
    ],
)
@pytest.mark.usefixtures("cases")
def test_a_mistake_is_one_sentence_and_leaves_nothing(line: str, sentence: str, refused: Refused) -> None:
    assert sentence in refused("cases", "run", *line.split())


def test_other_mistakes_are_named_too(here: Path, refused: Refused) -> None:
    (here / "bare.json").write_text('[{"question": "?", "options": ["a", "b"], "answer": "a"}]', encoding="utf-8")
    assert "no case of bare.json has votes" in refused("cases", "votes", "bare.json")
    assert "has what the modes image need" in refused(
        "cases", "run", "bare.json", "--modes", "image", "--endpoint", "http://127.0.0.1:1/v1", "--model-name", "m"
    )
    assert "a leak is a share from 0 to 1, not 2.0" in refused("cases", "write", "--out", "made", "--leak", "2")
