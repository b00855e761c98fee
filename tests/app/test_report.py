"""The report page: whole, self-contained, escaped; and its JSON, which reads back as it was written."""

from __future__ import annotations

import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from PIL import Image

from tessera.app import charts
from tessera.app.report import duration, page, render, shown
from tessera.errors import DataError
from tessera.study.report import (
    Album,
    Answered,
    Captioned,
    Curve,
    Drawn,
    NextCommand,
    Page,
    Part,
    Reconstruction,
    Report,
    Score,
    StageTime,
    keep_picture,
    read_report,
    thin,
)

NASTY = "<script>alert('x')</script> & \"quotes\" {{ 7 * 7 }}"
VOID = {"meta", "img", "br", "line", "circle", "polyline"}


class Reader(HTMLParser):
    """Collects what a page holds, and checks that its elements are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.words: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attributes if name in ("src", "href", "action", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)


def _report(folder: Path) -> Report:
    red, blue = (keep_picture(folder, Image.new("RGB", (64, 64), colour)) for colour in ("red", "blue"))
    parts = (Part(text="a page"), Part(picture=red), Part(text=f"goes on {NASTY}", by_model=True))
    return Report(
        title="A run",
        summary=f"Small {NASTY}",
        command="tessera train vl-gpt",
        scores=(
            Score(name="captions", value=0.9, low=0.85, high=0.94, n=200, floor=0.85, headline=True),
            Score(name="questions", value=0.8, low=0.77, high=0.83, n=690, floor=0.85, chance=0.4, headline=True),
            Score(
                name="distance",
                value=12.5,
                low=11.0,
                high=14.0,
                n=50,
                percent=False,
                higher_is_better=False,
                about=NASTY,
            ),
        ),
        reconstructions=(Reconstruction(original=red, rebuilt=blue, right=False, verdict="lost the circle"),),
        captions=(Captioned(picture=red, truth="a red page", said=NASTY, right=True),),
        answers=(Answered(picture=red, question="which colour?", truth="red", said="red", right=True),),
        drawings=(Drawn(prompt="a blue page", picture=blue),),
        albums=(
            Album(
                title="Emoji",
                about=NASTY,
                captions=(Captioned(picture=blue, truth="blue heart", said=NASTY),),
                drawings=(Drawn(prompt=NASTY, picture=red),),
            ),
            Album(title="Elsewhere", about="no font was found"),
        ),
        pages=(Page(title="A page", parts=parts),),
        in_context=(Page(title="Examples", parts=parts),),
        curves=(
            Curve(panel="first", name="words", steps=(1, 2, 3), values=(3.0, 2.0, math.nan)),
            Curve(panel="first", name=NASTY, steps=(1, 2, 3), values=(0.03, 0.02, 0.01)),
            Curve(panel="second", name="flat", steps=(1,), values=(1.0,)),
        ),
        stages=(StageTime(name="first", steps=1200, seconds=61.4),),
        machine={"cpu": "two cores"},
        next_commands=(NextCommand(command='tessera draw "x"', does="Draw."),),
        notes=("A note.",),
    )


def _read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return reader


def test_the_page_is_whole_and_has_every_section(tmp_path: Path) -> None:
    _report(tmp_path).write(tmp_path)
    path = render(tmp_path)
    assert path == tmp_path / "report.html"
    reader = _read(path.read_text(encoding="utf-8"))
    words = " ".join(" ".join(reader.words).split())
    for expected in (
        "A run",
        "90.0 %",
        "85.0 % to 94.0 %",
        "a red page",
        "which colour?",
        "a blue page",
        "blue heart",
        "no font was found",
        "Examples",
        "lost the circle",
        "1 of the 1 shown here are right",
        "1,200",
        "61 s",
        "two cores",
        'tessera draw "x"',
        "A note.",
    ):
        assert expected in words
    assert reader.tags.count("svg") == 3 + 2
    assert reader.tags.count("img") == 9


def test_the_page_loads_nothing_and_runs_nothing(tmp_path: Path) -> None:
    text = page(_report(tmp_path), tmp_path)
    reader = _read(text)
    assert reader.addresses
    assert all(address.startswith("data:image/png;base64,") for address in reader.addresses)
    assert "script" not in reader.tags
    assert "http://" not in text
    assert "https://" not in text
    assert "url(" not in text
    assert "@import" not in text


def test_text_is_escaped_wherever_it_stands(tmp_path: Path) -> None:
    text = page(_report(tmp_path), tmp_path)
    assert "<script" not in text
    assert text.count("&lt;script&gt;") >= 6
    assert "{{ 7 * 7 }}" in "".join(_read(text).words)


def test_an_empty_report_is_still_a_page(tmp_path: Path) -> None:
    reader = _read(page(Report(title="t", summary="s", command="c"), tmp_path))
    assert "img" not in reader.tags
    assert "Scores" not in reader.words


def test_a_report_reads_back_as_it_was_written(tmp_path: Path) -> None:
    written = _report(tmp_path)
    written.write(tmp_path)
    back = read_report(tmp_path)
    assert math.isnan(back.curves[0].values[2])
    assert back.scores == written.scores
    assert back.pages == written.pages
    assert back.albums == written.albums
    assert back.machine == written.machine
    back.write(tmp_path / "again")
    assert (tmp_path / "again/report.json").read_text() == (tmp_path / "report.json").read_text()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"scores": {}}, "scores should be or have a list"),
        ({"surprise": 1}, "not surprise"),
        ({"captions": [{"picture": "x"}]}, "the fields truth, said"),
        ({"title": 3}, "title should be or have str"),
        ({"version": 99}, "not a report of version"),
    ],
)
def test_a_damaged_report_says_where(change: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    path = Report(title="t", summary="s", command="c").write(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DataError, match=sentence):
        read_report(tmp_path)


def test_a_missing_report_and_a_cut_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        render(tmp_path)
    (tmp_path / "report.json").write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        render(tmp_path)


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "pictures/none.png", "report.json"])
def test_pictures_come_from_the_report_s_own_folder(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    Image.new("RGB", (2, 2)).save(tmp_path / "secret.png")
    report = Report(title="t", summary="s", command="c", drawings=(Drawn(prompt="p", picture=name),))
    report.write(folder)
    with pytest.raises(DataError):
        render(folder)
    assert not (folder / "report.html").exists()


def test_the_same_pixels_are_kept_once(tmp_path: Path) -> None:
    names = {keep_picture(tmp_path, Image.new("RGB", (4, 4), "red")) for _ in range(2)}
    names.add(keep_picture(tmp_path, Image.new("RGB", (4, 4), "blue")))
    assert len(names) == len(list((tmp_path / "pictures").iterdir())) == 2


def test_curves_become_a_drawing_inside_its_frame() -> None:
    steep = Curve(panel="p", name="loss", steps=tuple(range(1, 100)), values=tuple(9.0 / n for n in range(1, 100)))
    other = Curve(panel="p", name="other", steps=(1, 99), values=(9.0, 0.1))
    svg = ElementTree.fromstring(str(charts.curves([steep, other])))
    lines = [one for one in svg if one.tag == "polyline"]
    assert len(lines) == 2
    points = [tuple(map(float, point.split(","))) for point in lines[0].attrib["points"].split()]
    assert all(0 <= x <= charts.WIDTH and 0 <= y <= charts.HEIGHT for x, y in points)
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    labels = [float(one.attrib["y"]) for one in svg if one.attrib.get("class", "").startswith("end-")]
    assert abs(labels[0] - labels[1]) >= 14


def test_ticks_are_round_and_inside() -> None:
    assert charts.ticks(0, 1) == [0, 0.25, 0.5, 0.75, 1]
    assert charts.ticks(3, 900) == [250, 500, 750]
    assert charts.ticks(2, 2) == [2]


def test_thinning_keeps_the_mean_and_the_last_step() -> None:
    steps, values = thin(range(1, 1001), [float(n) for n in range(1, 1001)], most=100)
    assert len(steps) == 100
    assert steps[-1] == 1000
    assert values[0] == pytest.approx(5.5)
    assert thin([], []) == ((), ())


def test_numbers_are_written_for_people() -> None:
    assert [shown(0.853), shown(1.0), shown(2.4141, percent=False)] == ["85.3 %", "100 %", "2.41"]
    assert [duration(61), duration(221), duration(7260)] == ["61 s", "3 min 41 s", "2 h 01 min"]
