"""Write docs/papers/SLUG.md of each built paper from its file and from results/, with the plots of its studies.

Usage: python -m tools.pages [SLUG ...]   count the papers' figures anew, and write their pages (all, or those named)
       python -m tools.pages --check      fail where a page is not what the paper and results/ say

Ours beside a published figure is what `size` counts; results/figures/SLUG.json keeps it, so that a page can be checked
without counting again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tessera.app.report import duration
from tessera.app.study_plot import study_plot
from tessera.errors import DataError, TesseraError
from tessera.files import write_json, write_text
from tessera.papers import lights
from tessera.papers.figures import beside
from tessera.papers.lights import LIGHTS, SIGNS
from tessera.papers.registry import FAMILIES, Entry, Paper, entry, get, papers
from tessera.study.table import interval, number
from tools.readme import table

ROOT = Path(__file__).parent.parent
RESULTS, PAGES = ROOT / "results", ROOT / "docs/papers"


def count(slug: str) -> None:
    """Write results/figures/SLUG.json: published figures beside what is counted now."""
    paper = get(slug)
    rows = [row.as_json() for row in beside(paper.figures(), paper.size)]
    write_json(RESULTS / "figures" / f"{slug}.json", {"slug": slug, "figures": rows})


def counted(slug: str, paper: Paper) -> list[dict[str, Any]]:
    """The rows of results/figures/SLUG.json.

    Raises:
        DataError: it is not of the figures that the paper names now.
    """
    file = RESULTS / "figures" / f"{slug}.json"
    rows: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["figures"] if file.is_file() else []
    held = [{name: value for name, value in row.items() if name not in ("ours", "follows")} for row in rows]
    if held != [asdict(one) for one in paper.figures()]:
        raise DataError(f"{file} is not of the figures that {slug} names now; run `python -m tools.pages {slug}`")
    return rows


def page(slug: str) -> dict[str, str]:
    """File names within docs/papers, and their text: the page, and the plots that it shows."""
    one, paper = entry(slug), get(slug)
    plots: dict[str, str] = {}
    parts = [
        f"# {one.title}",
        paper.sentence,
        f"{one.year} · [arXiv {one.arxiv}](https://arxiv.org/abs/{one.arxiv}) · "
        + ", ".join(FAMILIES[letter] for letter in one.families)
        + f" · [the paper as a page of code](../../tessera/papers/{one.module}.py)",
        "Can do: " + ", ".join(one.capabilities) + ".",
        table(("light", "", "why"), [(name, SIGNS[one.lights[name]], why(one, name)) for name in LIGHTS]),
    ]
    for name, lines in paper.describe().items():
        parts += [f"## {name[0].upper()}{name[1:]}", "\n".join(f"- {line}" for line in lines)]
    parts += figures(counted(slug, paper))
    for name in (slug, *(f"{slug}-{study}" for study in paper.studies)):
        found = lights.result(name, RESULTS)
        if found:
            plot = study_plot(found[1])
            if plot:
                plots[f"{name}.svg"] = plot
            parts += measured(name, found[1])
    return {f"{slug}.md": "\n\n".join(parts) + "\n", **plots}


def why(one: Entry, name: str) -> str:
    """What a light follows from."""
    if name in one.not_applicable:
        return one.not_applicable[name]
    if name == "claim":
        found = lights.result(one.slug, RESULTS)
        if not found:
            return f"`tessera reproduce {one.slug}` was not run yet"
        return found[1]["verdict"] + ("" if found[1]["budget"]["equal"] else ", but at budgets that are not equal")
    recorded = lights.record(RESULTS).get(one.slug, {})
    outcomes = list(recorded.get("lights", {}).get(name, {}).values())
    if not outcomes:
        return f"no test was recorded yet: `make lights PAPER={one.slug}`"
    return f"{outcomes.count('passed')} of {len(outcomes)} tests passed, commit {recorded['commit'][:9]}"


def figures(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Published figures beside ours, and those that do not follow."""
    if not rows:
        return
    yield "## Published figures beside ours"
    yield "Ours are counted from the published configuration, on the meta device."
    cells = [(row["name"], row["published"], _shown(row["ours"]), "✓" if row["follows"] else "✗") for row in rows]
    yield table(("figure", "published", "ours", "follows"), cells)
    wrong = [row for row in rows if not row["follows"]]
    if wrong:
        yield "Published figures that do not follow from the published configuration:"
        lines = [f"{row['name']}: {row['published']}, ours {_shown(row['ours'])}: {row['note']}" for row in wrong]
        yield "\n".join(f"- {line}" for line in lines)


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)


def measured(name: str, result: Mapping[str, Any]) -> Iterator[str]:
    """A study: plot, claims with intervals and verdicts (scores of the arms, where nothing is claimed), and what it was
    made on."""
    yield f"## Measured: {result['title']}"
    yield f"![every arm with its 95 % interval, and each seed]({name}.svg)"
    rows = []
    for claim in result["claims"]:
        against = claim["against"] if isinstance(claim["against"], str) else number(claim["against"])
        by = f" by {number(claim['margin'])}" if claim["margin"] else ""
        spans = "<br>".join(f"{interval(one)} ({one['method'].split(' over ')[1]})" for one in claim["intervals"])
        what = f"{claim['name']}: {claim['arm']} − {against}, {claim['metric']}"
        rows.append((what, spans, claim["expect"] + by, f"**{claim['verdict']}**", claim["published"]))
    if rows:
        yield table(("claim", "difference, 95 % interval", "expected", "verdict", "published"), rows)
    else:
        names = sorted({name for arm in result["arms"].values() for name in arm["metrics"]})
        scores = [
            (name, *(interval(arm["metrics"][one]) if one in arm["metrics"] else "" for one in names))
            for name, arm in result["arms"].items()
        ]
        yield table(("arm", *(f"{name}, 95 % interval over seeds" for name in names)), scores)
    machine = result["machine"]
    budget = result["budget"]
    seeds = ", ".join(map(str, result["seeds"]))
    lines = [
        f"`{result['command']}`",
        f"budget: {budget['note']}{'' if budget['equal'] else '; NOT EQUAL between arms that are compared'}",
        f"seeds {seeds}; {duration(result['seconds'])} on {machine['cpu']}, {machine['cores']} cores;"
        f" commit {str(result['commit'])[:9]}; designs tried: {result['design']['tried']}",
        *result["notes"],
    ]
    yield "\n".join(f"- {line}" for line in lines)


def main(arguments: Sequence[str]) -> int:
    """Write or check; gives the exit code."""
    check = list(arguments) == ["--check"]
    built = [one.slug for one in papers() if one.built]
    stale = []
    for slug in built if check or not arguments else arguments:
        if not check:
            count(slug)
        for name, text in page(slug).items():
            file = PAGES / name
            if not file.is_file() or file.read_text(encoding="utf-8") != text:
                stale.append(name)
                if not check:
                    write_text(file, text)
    if stale:
        print(("out of step, run `make docs`: " if check else "wrote ") + ", ".join(stale))
    return 1 if check and stale else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except TesseraError as error:
        sys.exit(str(error))
