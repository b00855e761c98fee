"""Lights follow from what results say, and from nothing else."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from tessera.cli import main
from tessera.errors import DataError
from tessera.papers import lights
from tessera.papers.registry import entry


def _result(verdict: str = "holds", equal: bool = True) -> dict[str, Any]:
    return {"slug": "vl-gpt", "claims": [], "verdict": verdict, "budget": {"equal": equal}}


def _write(folder: Path, name: str, value: Any) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(value), encoding="utf-8")


@pytest.mark.parametrize(
    ("verdict", "equal", "light"),
    [("holds", True, "on"), ("holds", False, "off"), ("unclear", True, "off"), ("does not hold", True, "off")],
)
def test_claim_is_on_where_every_claim_holds_at_equal_budget(
    tmp_path: Path, verdict: str, equal: bool, light: str
) -> None:
    _write(tmp_path, "vl-gpt.json", _result(verdict, equal))
    assert lights.lights("vl-gpt", tmp_path)["claim"] == light


@pytest.mark.parametrize(
    ("outcomes", "light"),
    [
        ({}, "dark"),
        ({"a": "passed"}, "on"),
        ({"a": "passed", "b": "failed"}, "off"),
        ({"a": "passed", "b": "skipped"}, "off"),
        ({"a": "passed", "b": "not run"}, "off"),
    ],
)
def test_a_tested_light_is_on_where_every_test_passed(tmp_path: Path, outcomes: dict[str, str], light: str) -> None:
    _write(tmp_path, "lights.json", {"papers": {"vl-gpt": {"lights": {"exact": outcomes}}}})
    found = lights.lights("vl-gpt", tmp_path)
    assert found == {"size": "dark", "exact": light, "claim": "dark", "use": "dark", "weights": "dark"}


def test_a_result_of_one_s_own_comes_before_that_which_ships(tmp_path: Path) -> None:
    _write(tmp_path / "shipped", "vl-gpt.json", _result("holds"))
    _write(tmp_path / "mine", "vl-gpt.json", _result("unclear"))
    assert lights.lights("vl-gpt", tmp_path / "mine", tmp_path / "shipped")["claim"] == "off"
    assert lights.lights("vl-gpt", tmp_path / "none", tmp_path / "shipped")["claim"] == "on"


def test_what_does_not_apply_is_said_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    one = dataclasses.replace(entry("gpt-alternatives"))  # its lights are kept once they were looked at
    assert one.lit()["weights"] == ("n/a" if one.built else "dark")
    monkeypatch.setitem(one.__dict__, "built", True)
    assert one.lit()["weights"] == "n/a"
    assert one.as_json()["not_applicable"]["weights"] == "a survey; it publishes no weights of its own"


@pytest.mark.parametrize(("name", "text"), [("vl-gpt.json", "{}"), ("vl-gpt.json", "["), ("lights.json", "[]")])
def test_a_damaged_file_is_named(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=name):
        lights.lights("vl-gpt", tmp_path)


def test_show_names_the_figures_the_lights_and_what_does_not_apply(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["show", "vl-gpt"]) == 0
    shown = capsys.readouterr().out
    assert "7.5 B" in shown
    assert "7,551,546,880" in shown
    assert "size " in shown
    assert main(["show", "vl-gpt", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["figures"][0]["ours"] == 7_551_546_880
    assert told["figures"][0]["follows"] is True
    assert main(["show", "medical-cases"]) == 0
    assert "weights does not apply: " in capsys.readouterr().out


@pytest.mark.parametrize("slug", ["gmml", "facescan"])  # one that is built, one that is not
def test_show_describes_a_work_in_the_same_sentence_as_text_and_as_json(
    slug: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["show", slug]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert main(["show", slug, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["description"] == lines[3] and lines[3].endswith(".")
    assert told["description"] != told["summary"]
