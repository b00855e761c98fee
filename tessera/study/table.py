"""A study's result for the terminal."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

_SECONDS = "seconds a seed"
_ABREAST = 6  # scores
_COLOURS = {"holds": "green", "does not hold": "red", "unclear": "yellow"}


def number(value: float) -> str:
    """With four digits."""
    return f"{value:.4g}"


def interval(one: Mapping[str, Any]) -> str:
    """A value with its interval."""
    return f"{number(one['value'])} [{number(one['low'])}, {number(one['high'])}]"


def _claims(result: Mapping[str, Any]) -> Table:
    table = Table(title=f"{result['slug']}: {result['title']}", title_justify="left")
    for heading in ("claim", "metric", "difference, 95 % interval", "expected", "published", "verdict"):
        table.add_column(heading, overflow="fold")
    for claim in result["claims"]:
        by = f" by {number(claim['margin'])}" if claim["margin"] else ""
        against = claim["against"] if isinstance(claim["against"], str) else number(claim["against"])
        table.add_row(
            f"{claim['name']}: {claim['arm']} - {against}",
            claim["metric"],
            "\n".join(f"{interval(one)} ({one['method'].split(' over ')[1]})" for one in claim["intervals"]),
            claim["expect"] + by,
            claim["published"],
            Text(claim["verdict"], style=_COLOURS[claim["verdict"]]),
        )
    return table


def _arms(result: Mapping[str, Any]) -> Iterator[Table]:
    """Scores of the arms, so many in a table that their columns can be read."""
    names = [*sorted({name for arm in result["arms"].values() for name in arm["metrics"]}), _SECONDS]
    for first in range(0, len(names), _ABREAST):
        table = Table(title="" if first else "mean over seeds, 95 % interval", title_justify="left")
        shown = names[first : first + _ABREAST]
        for heading in ("arm", *shown):
            table.add_column(heading, overflow="fold")
        for name, arm in result["arms"].items():
            table.add_row(name, *(_cell(arm, metric) for metric in shown))
        yield table


def _cell(arm: Mapping[str, Any], metric: str) -> str:
    if metric == _SECONDS:
        return number(sum(arm["seconds"]) / len(arm["seconds"]))
    return interval(arm["metrics"][metric]) if metric in arm["metrics"] else ""


def table(result: Mapping[str, Any]) -> RenderableType:
    """Claims, if any, with their verdicts, arms with their scores, then budget, seeds, machine and notes."""
    machine = result["machine"]
    lines = [
        f"budget: {result['budget']['note']}",
        f"seeds {', '.join(map(str, result['seeds']))}; {result['seconds']:.0f} s of training and evaluation"
        f" on {machine['cpu']}, {machine['cores']} cores; commit {result['commit']}",
        f"designs tried: {result['design']['tried']}",
        *result["notes"],
    ]
    colour = "" if result["budget"]["equal"] else "bold red"
    claims = [_claims(result)] if result["claims"] else [Text(f"{result['slug']}: {result['title']}")]
    return Group(*claims, *_arms(result), Text(lines[0], style=colour), *map(Text, lines[1:]))


def text(result: Mapping[str, Any], width: int = 120) -> str:
    """The same as plain text."""
    page = io.StringIO()
    Console(file=page, width=width, no_color=True).print(table(result))
    return page.getvalue()
