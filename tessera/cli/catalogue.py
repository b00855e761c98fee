"""`tessera papers`, `show`, `size`."""

from __future__ import annotations

import json as json_format
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tessera.cli.options import argument, option
from tessera.cli.printing import number, print_json, print_result, print_table
from tessera.papers.registry import FAMILIES, LIGHTS, Entry, entry, get, papers

_SIGNS = {"on": "●", "off": "✗", "n/a": "–", "dark": "○"}


def _lights(one: Entry) -> str:
    return "".join(_SIGNS[one.lights[name]] for name in LIGHTS)


@dataclass
class Papers:
    """The works that Tessera is about.

    The five lights are size, exact, claim, use, weights: ● on, ✗ off, – not applicable, ○ not built.
    """

    search: str | None = option("only those whose slug, title or summary has this text", None)
    json: bool = option("print JSON", False)

    def run(self) -> None:
        wanted = (self.search or "").lower()
        found = [one for one in papers() if wanted in f"{one.slug} {one.title} {one.summary}".lower()]
        if self.json:
            print_json([one.as_json() for one in found])
            return
        rows = [(one.slug, one.year, _lights(one), "".join(one.families), one.summary) for one in found]
        print_table(rows, ("slug", "year", "lights", "family", "in one line"))


@dataclass
class Show:
    """One work: what it is, its parts, stages, claims and figures, and what was measured here."""

    slug: str = argument("the short name that `tessera papers` lists")
    results: Path = option("folder of result files", Path("results"))
    json: bool = option("print JSON", False)

    def run(self) -> None:
        one = entry(self.slug)
        sections = {name: list(lines) for name, lines in get(self.slug).describe().items()} if one.built else {}
        file = self.results / f"{self.slug}.json"
        result = json_format.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
        lights = dict(one.lights)
        if result is not None:
            from tessera.study.table import light

            lights["claim"] = light(result)
        if self.json:
            print_json({**one.as_json(), "lights": lights, "sections": sections, "result": result})
            return
        print(f"{one.title}\n{one.slug} · {one.year} · arXiv {one.arxiv}\n\n{one.summary}\n")
        print("families: " + ", ".join(FAMILIES[letter] for letter in one.families))
        print("lights:   " + ", ".join(f"{name} {lights[name]}" for name in LIGHTS))
        if not one.built:
            print("\nIn the catalogue, not built yet.")
        if one.capabilities:
            print("can do:   " + ", ".join(one.capabilities))
        for name, lines in sections.items():
            print(f"\n{name}\n" + "\n".join(f"  {line}" for line in lines))
        if result is not None:
            print(f"\nmeasured: {file}")
            print_result(result)


@dataclass
class Size:
    """Parameters, FLOPs and tokens at published size. Counted on the meta device, without weights."""

    slug: str = argument("the short name that `tessera papers` lists")
    variant: str | None = option("a named variant of the paper", None)
    json: bool = option("print JSON", False)

    def run(self) -> None:
        found = get(self.slug).size(self.variant)
        if self.json:
            print_json(found)
        else:
            print_table(list(_flat(found)), ("figure", "value"))


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested values as rows, inner names after outer ones."""
    rows: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{name} / ")
        else:
            rows.append((prefix + name, number(value)))
    return rows
