"""Record what the marked tests show: `make lights`, or `make lights PAPER=t2t-vit` for one paper.

    @pytest.mark.light("t2t-vit", "size")
    def test_every_published_count_is_exact(): ...

says that the light "size" of t2t-vit is on only where this test passes. `pytest -m light --lights all` runs every
marked test and writes results/lights.json: each paper's outcomes with command, commit, machine and time. A paper's name
instead of `all` renews that paper alone. A marked test that did not run, for whatever reason, is written as "not run".
"""

from __future__ import annotations

import ast
import datetime
import json
import shlex
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tessera.errors import UserError
from tessera.files import write_json
from tessera.papers.lights import RECORD, TESTED
from tessera.papers.registry import entry
from tessera.study.machine import commit, describe_machine, versions

ROOT = Path(__file__).parent.parent
MARK = "light"
NOT_RUN = "not run"
_WORSE = ("passed", "skipped", NOT_RUN, "failed")  # of a test's cases and phases the worst counts


def read(mark: pytest.Mark) -> tuple[str, tuple[str, ...]]:
    """Paper and lights of a mark.

    Raises:
        pytest.UsageError: no such paper or light.
    """
    slug, *lights = mark.args or ("",)
    unknown = [name for name in lights if name not in TESTED]
    if mark.kwargs or not lights or unknown:
        raise pytest.UsageError(f"a mark is light(SLUG, LIGHT, ...) with lights of {TESTED}, not {mark.args}")
    try:
        return entry(slug).slug, tuple(lights)
    except UserError as error:
        raise pytest.UsageError(str(error)) from error


class Recorder:
    """Collects the outcomes of marked tests of one session, and writes them at its end."""

    def __init__(self, wanted: str, results: Path = ROOT / "results") -> None:
        self.wanted, self.file = wanted, results / RECORD
        self.cases: dict[str, dict[str, dict[str, list[str]]]] = {}  # paper -> light -> test -> its cases
        self.outcomes: dict[str, list[str]] = {}  # case -> outcomes of its phases
        self.began = time.monotonic()

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Note every marked test that there is, whatever is chosen to run afterwards; leave out all others."""
        if config.args_source is not pytest.Config.ArgsSource.TESTPATHS:
            raise pytest.UsageError("lights are recorded from all tests: name no files, and a paper by --lights SLUG")
        chosen = [item for item in items if self._note(item)]
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen

    def _note(self, item: pytest.Item) -> bool:
        wanted = [read(mark) for mark in item.iter_markers(MARK)]
        wanted = [(slug, lights) for slug, lights in wanted if self.wanted in ("all", slug)]
        test = item.nodeid.partition("[")[0]
        for slug, lights in wanted:
            for light in lights:
                self.cases.setdefault(slug, {}).setdefault(light, {}).setdefault(test, []).append(item.nodeid)
        return bool(wanted)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the outcome of a phase: set-up, call or tear-down."""
        self.outcomes.setdefault(report.nodeid, []).append(report.outcome)

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Write, unless the session was stopped or could not read all tests."""
        if exitstatus not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            return
        about = self.about(session.config.invocation_params.args)
        before = json.loads(self.file.read_text(encoding="utf-8"))["papers"] if self.file.is_file() else {}
        kept = {} if self.wanted == "all" else {slug: one for slug, one in before.items() if slug != self.wanted}
        new = {slug: {**about, "lights": self.lights(slug)} for slug in self.cases}
        write_json(self.file, {"version": 1, "papers": dict(sorted({**kept, **new}.items()))})

    def lights(self, slug: str) -> dict[str, dict[str, str]]:
        """Outcomes of a paper's tests by light; of a test's cases the worst."""
        return {
            light: {test: max(map(self._outcome, cases), key=_WORSE.index) for test, cases in sorted(tests.items())}
            for light, tests in sorted(self.cases[slug].items())
        }

    def _outcome(self, case: str) -> str:
        return max(self.outcomes.get(case, [NOT_RUN]), key=_WORSE.index)

    def about(self, words: Sequence[Any]) -> dict[str, Any]:
        """What goes with the outcomes."""
        return {
            "command": shlex.join(["pytest", *map(str, words)]),
            "commit": commit(),
            "machine": describe_machine(),
            "versions": versions(),
            "seconds": round(time.monotonic() - self.began, 1),
            "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }


def marked(tests: Path = ROOT / "tests") -> Iterator[tuple[str, str, str]]:
    """(paper, light, test) of every mark in the source, without running anything: on functions, or a whole file's."""
    for file in sorted(tests.rglob("test_*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        whole = [node.value for node in tree.body if isinstance(node, ast.Assign) and _is_pytestmark(node)]
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                for slug, light in sorted({pair for one in [*whole, *node.decorator_list] for pair in _pairs(one)}):
                    yield slug, light, f"{file.relative_to(tests.parent).as_posix()}::{node.name}"


def _is_pytestmark(node: ast.Assign) -> bool:
    return any(isinstance(target, ast.Name) and target.id == "pytestmark" for target in node.targets)


def _pairs(node: ast.expr) -> Iterator[tuple[str, str]]:
    """(paper, light) of the marks in an expression."""
    for call in ast.walk(node):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == MARK:
            slug, *lights = [ast.literal_eval(one) for one in call.args]
            yield from ((slug, light) for light in lights)
