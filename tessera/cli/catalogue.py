"""`tessera papers`, `show`, `size`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten

from tessera.cli.options import argument, option
from tessera.cli.printing import number, print_json, print_result, print_table
from tessera.errors import UserError, nearest
from tessera.papers import lights
from tessera.papers.figures import Beside, beside, flat
from tessera.papers.lights import LIGHTS, SIGNS
from tessera.papers.registry import FAMILIES, Entry, Paper, entry, get, papers

TITLE = 60  # letters of a title in the list


@dataclass
class Papers:
    """The works that Tessera is about.

    The five lights are size, exact, claim, use, weights: ● on, ✗ off, – not applicable, ○ not shown yet.
    """

    search: str | None = option("only those that are about this, the nearest first", None)
    json: bool = option("print JSON", False)

    def run(self) -> None:
        found: Sequence[Entry] = papers()
        if self.search is not None:
            from tessera.papers.search import search

            found = search(self.search)
        if self.json:
            print_json([one.as_json() for one in found])
            return
        if not found:
            print(f"no paper is about {self.search!r}; `tessera papers` lists all")
            return
        rows = [
            (one.slug, one.year, "".join(SIGNS[one.lights[name]] for name in LIGHTS), "".join(one.families),
             shorten(one.title, TITLE, placeholder="…"), ", ".join(one.capabilities))
            for one in found
        ]  # fmt: skip
        print_table(rows, ("slug", "year", "lights", "family", "title", "can do"))


@dataclass
class Show:
    """One work: what it is, its parts, stages and claims, its figures beside ours, and what was measured here."""

    slug: str = argument("the short name that `tessera papers` lists")
    results: Path = option("folder of result files, looked at before those that ship", Path("results"))
    json: bool = option("print JSON", False)

    def run(self) -> None:
        one = entry(self.slug)
        paper = get(self.slug) if one.built else None
        sections = {name: list(lines) for name, lines in paper.describe().items()} if paper else {}
        counted = beside(paper.figures(), paper.size) if paper else []
        names = [self.slug, *(f"{self.slug}-{study}" for study in paper.studies)] if paper else []
        found = [lights.result(name, self.results, lights.shipped()) for name in names]
        measured = [one for one in found if one]
        lit = one.lit(self.results)
        said = paper.sentence if paper else f"{one.summary[0].upper()}{one.summary[1:]}."
        if self.json:
            main = found[0][1] if found and found[0] else None
            further = {file.stem: result for file, result in measured if file.stem != self.slug}
            figures = [row.as_json() for row in counted]
            about = {**one.as_json(), "description": said, "lights": lit, "sections": sections, "figures": figures}
            print_json({**about, "result": main, "further": further})
            return
        print(f"{one.title}\n{one.slug} · {one.year} · arXiv {one.arxiv}\n\n{said}\n")
        print("families: " + ", ".join(FAMILIES[letter] for letter in one.families))
        print("can do:   " + ", ".join(one.capabilities))
        print("lights:   " + ", ".join(f"{name} {lit[name]}" for name in LIGHTS))
        for name, reason in one.not_applicable.items():
            print(f"          {name} does not apply: {reason}")
        if paper is None:
            print("\nIn the catalogue, not built yet.")
            return
        for name, lines in sections.items():
            print(f"\n{name}\n" + "\n".join(f"  {line}" for line in lines))
        _print_figures(counted, paper)
        for file, result in measured:
            print(f"\nmeasured: {file}")
            print_result(result)


def _print_figures(counted: Sequence[Beside], paper: Paper) -> None:
    """Published figures beside ours, and those that do not follow."""
    if paper.variants:
        print("\nvariants\n  " + ", ".join(paper.variants))
    if counted:
        print("\nfigures, ours counted from the published configuration")
        print_table(
            [(f"  {row.figure.name}", row.figure.published, number(row.ours)) for row in counted],
            ("  figure", "published", "ours"),
        )
    wrong = [row for row in counted if not row.follows]
    if wrong:
        print("\npublished figures that do not follow from the published configuration")
        for row in wrong:
            print(f"  {row.figure.name}: {row.figure.published}, ours {number(row.ours)}: {row.figure.note}")


@dataclass
class Size:
    """Parameters, FLOPs and tokens at published size. Counted on the meta device, without weights."""

    slug: str = argument("the short name that `tessera papers` lists")
    variant: str | None = option("a named variant of the paper", None)
    json: bool = option("print JSON", False)

    def run(self) -> None:
        paper = get(self.slug)
        if self.variant is not None and self.variant not in paper.variants:
            hint = nearest(self.variant, paper.variants) if paper.variants else "; it has one size, without a name"
            raise UserError(f"{self.slug} has no variant {self.variant!r}{hint}")
        found = paper.size(self.variant)
        if self.json:
            print_json(found)
        else:
            print_table([(name, number(value)) for name, value in flat(found)], ("figure", "value"))
