"""Recording lights: what a small set of marked tests writes, and that the record in results/ is of today's tests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tessera.papers.lights import RECORD, of_tests
from tools import lights

ROOT = Path(__file__).parent.parent
pytest_plugins = ["pytester"]
TESTS = """
import pytest

@pytest.mark.light("vl-gpt", "size", "exact")
def test_right():
    pass

@pytest.mark.light("vl-gpt", "exact")
@pytest.mark.parametrize("case", [1, 2])
def test_half_right(case):
    assert case == 1

@pytest.mark.light("cvt", "weights")
def test_skipped():
    pytest.skip("no file")

@pytest.mark.slow
@pytest.mark.light("cvt", "use")
def test_slow():
    pass

def test_unmarked():
    raise RuntimeError
"""


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A project of five tests, four of them marked."""
    # Torch, which knows the accelerators, cannot be imported again when pytester has put it out of sys.modules.
    monkeypatch.setattr(lights, "describe_machine", lambda: {"cpu": "of a test"})
    pytester.makeini("[pytest]\ntestpaths = tests\nmarkers =\n    slow\n    light\naddopts = -p no:cacheprovider")
    pytester.mkdir("tests").joinpath("test_some.py").write_text(TESTS, encoding="utf-8")
    return pytester


def _record(project: pytest.Pytester, wanted: str, *words: str) -> dict:
    project.inline_run(*words, plugins=[lights.Recorder(wanted, project.path)])
    return json.loads((project.path / RECORD).read_text(encoding="utf-8"))["papers"]


def test_a_record_holds_the_worst_outcome_of_each_marked_test_and_names_its_making(project: pytest.Pytester) -> None:
    found = _record(project, "all")
    place = "tests/test_some.py::test_"
    assert found["vl-gpt"]["lights"] == {
        "size": {f"{place}right": "passed"},
        "exact": {f"{place}right": "passed", f"{place}half_right": "failed"},
    }
    assert found["cvt"]["lights"] == {"weights": {f"{place}skipped": "skipped"}, "use": {f"{place}slow": "passed"}}
    assert set(found["cvt"]) == {"command", "commit", "machine", "versions", "seconds", "written", "lights"}


def test_a_marked_test_that_was_left_out_puts_its_light_off(project: pytest.Pytester) -> None:
    found = _record(project, "all", "-m", "not slow")
    assert of_tests(found["cvt"]["lights"]["use"]) == "off"


def test_one_paper_is_renewed_and_the_others_are_kept(project: pytest.Pytester) -> None:
    first = _record(project, "all")
    (project.path / "tests/test_some.py").write_text(TESTS.replace('pytest.skip("no file")', "pass"), encoding="utf-8")
    second = _record(project, "cvt")
    assert second["vl-gpt"] == first["vl-gpt"]
    assert second["cvt"]["lights"]["weights"] == {"tests/test_some.py::test_skipped": "passed"}


def test_a_part_of_the_tests_is_not_recorded(project: pytest.Pytester) -> None:
    project.inline_run("tests/test_some.py", plugins=[lights.Recorder("all", project.path)])
    assert not (project.path / RECORD).exists()


def test_tests_that_cannot_be_read_are_not_recorded(project: pytest.Pytester) -> None:
    (project.path / "tests/test_broken.py").write_text("import nothing_of_the_kind", encoding="utf-8")
    project.inline_run(plugins=[lights.Recorder("all", project.path)])
    assert not (project.path / RECORD).exists()


@pytest.mark.parametrize("arguments", [(), ("vl-gpt",), ("vl-gpt", "claim"), ("vlgpt", "size"), ("vl-gpt", "sise")])
def test_a_mark_of_no_paper_or_no_tested_light_is_refused(arguments: tuple[str, ...]) -> None:
    with pytest.raises(pytest.UsageError):
        lights.read(pytest.mark.light(*arguments).mark)


def test_marks_are_found_in_the_source_without_running_it(project: pytest.Pytester) -> None:
    found = set(lights.marked(project.path / "tests"))
    assert ("vl-gpt", "exact", "tests/test_some.py::test_half_right") in found
    assert len(found) == 5


def test_the_record_is_of_the_tests_that_are_marked_today() -> None:
    file = ROOT / "results" / RECORD
    recorded = json.loads(file.read_text(encoding="utf-8"))["papers"] if file.is_file() else {}
    held = {(slug, light, test) for slug, one in recorded.items() for light, t in one["lights"].items() for test in t}
    marked = {(slug, light, test) for slug, light, test in lights.marked() if slug in recorded}
    assert held == marked, "marked tests came or went since results/lights.json was written: run `make lights`"
