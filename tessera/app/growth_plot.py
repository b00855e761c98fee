"""A plot of how a time grows, as an SVG file of its own: both axes logarithmic, a line for each way of doing it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from tessera.app.charts import Axis, label
from tessera.app.study_plot import STYLE

WIDTH, HEIGHT = 720, 300
LEFT, RIGHT, TOP, BOTTOM = 60, 120, 34, 46
NAMES = ("ours", "the plain way")
_LINES = """
.line-0, .line-1 { fill: none; stroke-width: 2.5; } .line-0, .mark-0 { stroke: #0969da; } .mark-0 { fill: #0969da; }
.line-1, .mark-1 { stroke: #bf8700; } .mark-1 { fill: #bf8700; }
@media (prefers-color-scheme: dark) { .line-0, .mark-0 { stroke: #4493f8; } .line-1, .mark-1 { stroke: #d29922; } }
"""


def growth_plot(row: Mapping[str, Any]) -> str:
    """The plot of a row whose `points` are (x, milliseconds of ours, of the plain way) and whose x is what `across`
    says."""
    points: Sequence[Sequence[float]] = row["points"]
    across = Axis(points[0][0], points[-1][0], LEFT, WIDTH - RIGHT, log=True)
    times = [value for point in points for value in point[1:]]
    up = Axis(min(times), max(times), HEIGHT - BOTTOM, TOP, log=True)
    title = escape(row["measure"])
    body = [f'<text class="title" x="8" y="18">{title}</text>']
    for point in points:
        x = across(point[0])
        body.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        body.append(
            f'<text class="soft" x="{x}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{_short(point[0])}</text>'
        )
    body.append(f'<text class="soft" x="{LEFT}" y="{HEIGHT - 8}">{escape(row["across"])}; milliseconds up</text>')
    for number, name in enumerate(NAMES):
        places = [(across(point[0]), up(point[1 + number])) for point in points]
        body.append(f'<polyline class="line-{number}" points="{" ".join(f"{x},{y}" for x, y in places)}"/>')
        body += [f'<circle class="mark-{number}" cx="{x}" cy="{y}" r="3"/>' for x, y in places]
        x, y = places[-1]
        body.append(f'<text x="{x + 8}" y="{y + 4}">{name} {_short(points[-1][1 + number])}</text>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">'
    return "\n".join([head, f"<style>{STYLE}{_LINES}</style>", *body, "</svg>", ""])


def _short(value: float) -> str:
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.3g} {letter}"
    return label(value)
