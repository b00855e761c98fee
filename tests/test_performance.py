"""The page of the benches says what results/ say, and the committed one is that."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from tessera.app.growth_plot import growth_plot
from tools import performance

GROWN = {
    "measure": "time <of> a step", "device": "cpu", "dtype": "", "unit": "power", "value": 1.25, "floor": 2.1,
    "aim": 1.7, "how": "least squares", "verdict": "reaches the aim", "across": "positions",
    "points": [[128.0, 10.0, 30.0], [1024.0, 80.0, 300.0], [8192.0, 900.0, 5000.0]],
}  # fmt: skip
RACED = {
    "race": "a step", "device": "cpu", "dtype": "bfloat16", "peer": "the plain way", "speed": 2.345, "counted": 1.5,
    "slowest": 2.0, "fastest": 3.0, "ours_ms": 1234.0, "theirs_ms": 2893.0, "of_ceiling": 0.61, "least": 1.5,
    "aim": 2.5, "verdict": "fast enough",
}  # fmt: skip


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in {"RESULTS": tmp_path, "PAGE": tmp_path / "page.md", "PLOTS": tmp_path / "plots"}.items():
        monkeypatch.setattr(performance, name, value)
    return tmp_path


def _write(results: Path, name: str, *rows: dict[str, Any]) -> None:
    machine = {"cpu": "a processor", "cores": 2, "accelerators": []}
    found = {"rows": rows, "machine": machine, "versions": {"torch": "9"}, "threads": 2, "commit": "abc"}
    (results / f"bench-{name}.json").write_text(json.dumps(found))


def test_the_page_has_every_bench_with_what_was_measured_and_what_was_asked(results: Path) -> None:
    _write(results, "train", RACED, {**GROWN, "points": GROWN["points"], "value": None, "verdict": "not measured here"})
    assert performance.main([]) == 0
    text = (results / "page.md").read_text()
    assert "**2.35**" in text and "2.00 to 3.00" in text and "61%" in text and "floor 1.5, aim 2.5" in text
    assert "not measured here" in text and "a processor, 2 cores; PyTorch 9" in text
    assert text.count("*Not measured yet.*") == len(performance.BENCHES) - 1
    assert (results / "plots/bench-train-1.svg").is_file()
    assert performance.main(["--check"]) == 0
    _write(results, "train", RACED)
    assert performance.main(["--check"]) == 1


def test_the_page_shows_the_operators_of_a_profile_and_ends_in_what_was_tried(results: Path) -> None:
    operators = [{"name": "aten::mm", "ms": 12.0, "share": 0.4, "calls": 30.0}]
    row = {**GROWN, "floor": None, "aim": None, "operators": operators}
    _write(results, "profile", {name: value for name, value in row.items() if name != "points"})
    performance.main([])
    text = (results / "page.md").read_text()
    assert "**time <of> a step**" in text and "| `aten::mm` | 12 | 40% | 30 |" in text
    assert text.endswith(performance.NOTES.read_text())


def test_a_growth_is_a_straight_line_on_its_axes_and_its_words_are_escaped() -> None:
    points = [[float(x), 2.0 * x, 3.0 * x] for x in (128, 1024, 8192)]
    root = ElementTree.fromstring(growth_plot({**GROWN, "points": points}))
    lines = [one.get("points", "").split() for one in root.iter("{http://www.w3.org/2000/svg}polyline")]
    assert len(lines) == 2
    for line in lines:
        (x0, y0), (x1, y1), (x2, y2) = (map(float, point.split(",")) for point in line)
        assert (x1 - x0, y0 - y1) == pytest.approx((x2 - x1, y1 - y2), abs=0.3)


def test_the_committed_page_is_of_the_committed_results() -> None:
    assert performance.main(["--check"]) == 0, "run `make docs`"
