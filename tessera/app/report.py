"""One page, `report.html`, from a run's `report.json` and pictures. It needs no network and no other file."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from tessera.app import charts
from tessera.errors import DataError
from tessera.files import write_text
from tessera.study.report import Curve, Report, Score, read_report

PAGE = "report.html"
_LARGEST_PICTURE = 4 * 2**20


def render(folder: str | Path) -> Path:
    """Write `report.html` into `folder` from its `report.json`, and give its path.

    Raises:
        DataError: there is no report in `folder`, or it or one of its pictures is damaged.
    """
    folder = Path(folder)
    path = folder / PAGE
    write_text(path, page(read_report(folder), folder))
    return path


def page(report: Report, folder: Path) -> str:
    """The page as text; pictures are read from `folder`."""

    @cache
    def picture(name: str) -> str:
        return _data_address(folder, name)

    return template("report.html.j2", picture=picture).render(
        report=report,
        panels=_panels(report.curves),
        curves=charts.curves,
        interval=lambda score: charts.interval(score, _scale(score)),
        seconds=sum(stage.seconds for stage in report.stages),
        tally=_tally,
        version=metadata.version("tessera-vl"),
    )


def template(name: str, **filters: Callable[..., Any]) -> Template:
    """A page's template, with filters that print values, and further ones."""
    environment = Environment(
        loader=PackageLoader("tessera.app"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(shown=shown, duration=duration, **filters)
    return environment.get_template(name)


def png_address(data: bytes) -> str:
    """A PNG file's bytes as a data: address."""
    return "data:image/png;base64," + base64.b64encode(data).decode()


def _data_address(folder: Path, name: str) -> str:
    """A picture of the report as a data: address."""
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()) or path.suffix != ".png":
        raise DataError(f"the report names the picture {name!r}, which is no PNG file of its own folder")
    try:
        data = path.read_bytes()
    except OSError:
        raise DataError(f"the report's picture {path} cannot be read") from None
    if len(data) > _LARGEST_PICTURE or not data.startswith(b"\x89PNG"):
        raise DataError(f"the report's picture {path} is no PNG file, or too large")
    return png_address(data)


def _panels(curves: tuple[Curve, ...]) -> Mapping[str, list[Curve]]:
    panels: dict[str, list[Curve]] = {}
    for curve in curves:
        panels.setdefault(curve.panel, []).append(curve)
    return panels


def _scale(score: Score) -> float:
    """The right end of a score's track."""
    if score.percent:
        return 1.0
    return 1.1 * max(score.value, score.high, score.floor or 0.0, score.chance or 0.0) or 1.0


def _tally(rows: tuple[object, ...]) -> tuple[int, int]:
    """How many of the judged rows are right, and how many were judged."""
    judged = [getattr(row, "right", None) for row in rows]
    return sum(right is True for right in judged), sum(right is not None for right in judged)


def shown(value: float, percent: bool = True) -> str:
    """A score for reading: 0.853 as 85.3 %, other values with three digits."""
    if percent:
        return f"{100 * value:.1f} %" if abs(value) < 0.9995 else f"{100 * value:.0f} %"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
