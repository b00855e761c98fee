"""A study's plot as an SVG file of its own: every arm's score with its 95 % interval, and each seed as a dot.

One panel for each metric that a claim speaks of, or, where nothing is claimed, for each that all arms have. It
follows the light and dark of where it is shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from tessera.app.charts import Axis, label, ticks

WIDTH, NAMES, MARGIN = 720, 220, 24
ROW, HEAD, FOOT = 24, 34, 30  # heights: of an arm, of a panel's title, of its axis
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328; } .soft { fill: #656d76; font-size: 11px; }
.title { font-weight: 600; } .grid { stroke: #d8dee4; }
.range { stroke: #0969da; stroke-width: 3; stroke-linecap: round; }
.mean { fill: #0969da; } .seed { fill: #0969da; opacity: .4; } .level { stroke: #bf8700; stroke-dasharray: 4 3; }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3; } .soft { fill: #8d96a0; } .grid { stroke: #30363d; } .range { stroke: #4493f8; }
.mean, .seed { fill: #4493f8; } .level { stroke: #d29922; } }
"""


def study_plot(result: Mapping[str, Any]) -> str:
    """The plot of a result, as `tessera.study.engine.run` gives it; "" where arms share no metric."""
    shared = set.intersection(*(set(arm["metrics"]) for arm in result["arms"].values()))
    metrics = list(dict.fromkeys(claim["metric"] for claim in result["claims"])) or sorted(shared)
    body: list[str] = []
    height = 8
    for metric in metrics:
        arms = {name: arm["metrics"][metric] for name, arm in result["arms"].items() if metric in arm["metrics"]}
        against = [claim["against"] for claim in result["claims"] if claim["metric"] == metric]
        levels = sorted({float(one) for one in against if not isinstance(one, str)})
        body += _panel(metric, arms, levels, height)
        height += HEAD + ROW * len(arms) + FOOT
    if not body:
        return ""
    title = escape(f"{result['slug']}: {result['title']}")
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{title}">'
    return "\n".join([head, f"<style>{STYLE}</style>", *body, "</svg>", ""])


def _panel(metric: str, arms: Mapping[str, Mapping[str, Any]], levels: Sequence[float], top: int) -> list[str]:
    """One metric: its arms as rows from `top` down, over an axis that holds all of them and the levels."""
    values = [value for arm in arms.values() for value in (arm["low"], arm["high"], *arm["by_seed"])] + list(levels)
    low, high = min(values), max(values)
    room = 0.04 * ((high - low) or abs(high) or 1.0)
    along = Axis(low - room, high + room, NAMES, WIDTH - MARGIN)
    first, last = top + HEAD, top + HEAD + ROW * len(arms)
    body = [f'<text class="title" x="8" y="{top + 18}">{escape(metric)}</text>']
    for tick in ticks(low - room, high + room, 5):
        x = along(tick)
        body.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{first - 4}" y2="{last}"/>')
        body.append(f'<text class="soft" x="{x}" y="{last + 16}" text-anchor="middle">{label(tick)}</text>')
    body += [
        f'<line class="level" x1="{along(level)}" x2="{along(level)}" y1="{first - 4}" y2="{last}"/>'
        for level in levels
    ]
    for number, (name, arm) in enumerate(arms.items()):
        y = first + ROW * number + ROW // 2
        body.append(f'<text x="{NAMES - 12}" y="{y + 4}" text-anchor="end">{escape(name)}</text>')
        body.append(f'<line class="range" x1="{along(arm["low"])}" x2="{along(arm["high"])}" y1="{y}" y2="{y}"/>')
        body += [f'<circle class="seed" cx="{along(seed)}" cy="{y}" r="3"/>' for seed in arm["by_seed"]]
        body.append(f'<circle class="mean" cx="{along(arm["value"])}" cy="{y}" r="5"/>')
    return body
