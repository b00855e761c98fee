"""Small charts as SVG text. Colours and fonts come from the page's style, and so follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from tessera.study.report import Curve, Score

WIDTH, HEIGHT = 520, 200
LEFT, RIGHT, TOP, BOTTOM = 46, 130, 10, 24
COLOURS = 4  # classes line-0 … of the page's style


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round values that divide [low, high] into about `count` parts."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _powers(low: float, high: float) -> list[float]:
    """Ticks of a logarithmic axis: powers of ten, and their halves where those are few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    factors = (1, 2, 5) if last - first <= 2 else (1,)
    every = (factor * 10.0**power for power in range(first, last + 1) for factor in factors)
    return [value for value in every if low <= value <= high]


def label(value: float) -> str:
    """A value for a tick or the end of a curve."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


class Axis:
    """Values to pixels, linear or logarithmic."""

    def __init__(self, low: float, high: float, start: float, end: float, log: bool = False) -> None:
        self.log = log
        low, high = (math.log10(low), math.log10(high)) if log else (low, high)
        self.low, self.span = low, (high - low) or 1.0
        self.start, self.end = start, end

    def __call__(self, value: float) -> float:
        value = math.log10(value) if self.log else value
        return round(self.start + (value - self.low) / self.span * (self.end - self.start), 1)


def curves(found: Sequence[Curve]) -> str:
    """The curves of one panel, each named at its end; on a logarithmic axis where they span much."""
    points = [
        [(step, value) for step, value in zip(one.steps, one.values, strict=True) if math.isfinite(value)]
        for one in found
    ]
    values = [value for line in points for _, value in line]
    if not values:
        return ""
    steps = [step for line in points for step, _ in line]
    low, high = min(values), max(values)
    log = low > 0 and high / low > 30
    across = Axis(min(steps), max(steps), LEFT, WIDTH - RIGHT)
    up = Axis(low, high, HEIGHT - BOTTOM, TOP, log)
    body = [_grid(value, up(value)) for value in (_powers(low, high) if log else ticks(low, high))]
    body += [
        f'<text class="tick" x="{across(step)}" y="{HEIGHT - 6}" text-anchor="middle">{label(step)}</text>'
        for step in ticks(min(steps), max(steps), 4)
    ]
    ends = _apart([up(line[-1][1]) if line else TOP for line in points])
    for number, (one, line, end) in enumerate(zip(found, points, ends, strict=True)):
        if line:
            colour = number % COLOURS
            path = " ".join(f"{across(step)},{up(value)}" for step, value in line)
            body.append(f'<polyline class="line-{colour}" points="{path}"/>')
            text = f"{escape(one.name)} {label(line[-1][1])}"
            body.append(f'<text class="end-{colour}" x="{WIDTH - RIGHT + 7}" y="{end + 4}">{text}</text>')
    return _svg(WIDTH, HEIGHT, body, f"{found[0].panel} by training step")


def _grid(value: float, y: float) -> str:
    line = f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>'
    return f'{line}<text class="tick" x="{LEFT - 8}" y="{y + 3.5}" text-anchor="end">{label(value)}</text>'


def _apart(places: Sequence[float], least: float = 15) -> list[float]:
    """Heights of labels moved apart where they would lie on each other, in the same order."""
    order = sorted(range(len(places)), key=lambda index: places[index])
    moved = list(places)
    for before, here in zip(order, order[1:], strict=False):
        moved[here] = max(moved[here], moved[before] + least)
    over = max((moved[index] for index in order), default=0) - (HEIGHT - BOTTOM + 2)
    return [place - max(over, 0) for place in moved]


def interval(score: Score, scale: float) -> str:
    """A score on a track from 0 to `scale`: its interval, the value, the floor to reach, and chance."""
    width, height = 220, 22
    along = Axis(0.0, scale, 4, width - 4)

    def place(value: float) -> float:
        return along(min(max(value, 0.0), scale))

    low, high = place(score.low), place(score.high)
    body = [
        f'<line class="track" x1="4" x2="{width - 4}" y1="11" y2="11"/>',
        f'<line class="range" x1="{low}" x2="{max(high, low + 1)}" y1="11" y2="11"/>',
    ]
    if score.chance is not None:
        body.append(f'<line class="chance" x1="{place(score.chance)}" x2="{place(score.chance)}" y1="5" y2="17"/>')
    if score.floor is not None:
        body.append(f'<line class="floor" x1="{place(score.floor)}" x2="{place(score.floor)}" y1="2" y2="20"/>')
    body.append(f'<circle class="value" cx="{place(score.value)}" cy="11" r="4.5"/>')
    return _svg(width, height, body, f"{score.name}: {score.value:.3g} from {score.low:.3g} to {score.high:.3g}")


def _svg(width: int, height: int, body: Sequence[str], title: str) -> str:
    """An SVG element. Everything in `body` is made here from numbers, or escaped; templates take it as it is."""
    head = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">'
    return head + "".join(body) + "</svg>"
