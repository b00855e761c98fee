"""The pages say what is so: their commands parse, their Python compiles, their links lead somewhere, their numbers are
those of results/."""

from __future__ import annotations

import ast
import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest
from PIL import Image

from tessera.cli.options import parse
from tessera.cli.program import COMMANDS, find
from tessera.study.report import Captioned, Report, Score, StageTime, keep_picture
from tools import readme

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def _blocks(language: str) -> list[str]:
    return [
        body for page in PAGES for name, body in BLOCK.findall(page.read_text(encoding="utf-8")) if name == language
    ]


def test_every_command_on_the_pages_is_one_that_we_have() -> None:
    lines = [line for block in _blocks("sh") for line in block.splitlines() if line.startswith("tessera ")]
    assert len(lines) > 15
    for line in lines:
        name, rest = find(shlex.split(line, comments=True)[1:])
        module, options = COMMANDS[name][0].split(":")
        assert parse(getattr(import_module(f"tessera.cli.{module}"), options), rest, name)


def test_every_make_target_on_the_pages_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = {word for page in PAGES for word in re.findall(r"make (\w+)\b", page.read_text(encoding="utf-8"))}
    targets = set(re.findall(r"^(\w+):", makefile, re.MULTILINE))
    assert {"demo", "test", "docs", "lint"} <= named & targets


def test_python_on_the_pages_uses_names_that_the_library_has() -> None:
    from tessera.assistant import Assistant

    blocks = _blocks("python")
    assert blocks
    for block in blocks:
        calls = [node for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Attribute)]
        for call in calls:
            if isinstance(call.value, ast.Name) and call.value.id == "model":
                assert hasattr(Assistant, call.attr), call.attr


def test_links_between_the_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)|src=\"([^\"]+)\"", page.read_text(encoding="utf-8")):
            link = "".join(target)
            if not link.startswith("https://"):
                assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_generated_parts_are_what_results_say(capsys: pytest.CaptureFixture[str]) -> None:
    assert readme.main(["--check"]) == 0, capsys.readouterr().out


def test_a_run_s_report_becomes_pictures_and_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    name = keep_picture(run, Image.new("RGB", (64, 64), "red"))
    Report(
        title="t",
        summary="s",
        command="tessera train vl-gpt",
        scores=(
            Score(name="captions", value=0.9, low=0.85, high=0.94, n=200, floor=0.85),
            Score(name="drawings", value=0.5, low=0.4, high=0.6, n=64, floor=0.85),
            Score(name="aside", value=0.5, low=0.4, high=0.6, n=64),
        ),
        captions=(Captioned(picture=name, truth="red", said="all red", right=True),),
        stages=(StageTime(name="a", steps=1, seconds=61.0),),
        machine={"cpu": "two cores"},
    ).write(run)
    monkeypatch.setattr(readme, "DEMO", tmp_path / "demo.json")
    monkeypatch.setattr(readme, "PICTURES", tmp_path / "pictures")
    readme.take_demo(run)
    with Image.open(tmp_path / "pictures" / Path(name).name) as kept:
        assert kept.size == (192, 192)
    assert "all red ✓" in readme.demo_pictures()
    scores = readme.demo_scores()
    assert "| captions | 90.0 % | 85.0 % to 94.0 % | 85.0 % ✓ | 200 |" in scores
    assert "| drawings | 50.0 % | 40.0 % to 60.0 % | 85.0 % ✗ | 64 |" in scores
    assert "aside" not in scores
    assert "61 s of training on two cores" in scores


def test_every_room_on_the_architecture_page_is_one_of_the_floors() -> None:
    from tools.check_floors import FLOOR_OF

    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    drawn = re.search(r"```\ncli .*?```", page, re.DOTALL)
    assert drawn
    rooms = {word for line in drawn[0].splitlines()[1:-1] for word in re.split(r"\s{2,}|, ", line) if word in FLOOR_OF}
    here = {
        path.stem for path in (ROOT / "tessera").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert here - {"__init__", "__main__"} <= rooms
