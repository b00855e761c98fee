"""Rewrite the generated parts of README.md and docs/: every number there comes from a file in results/.

Usage: python -m tools.readme [--demo RUN]   write; with --demo, first take scores and pictures from a run's report
       python -m tools.readme --check        fail where a generated part is not what results/ says

A generated part stands between `<!-- begin NAME -->` and `<!-- end NAME -->`.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from tessera.app.report import duration, shown
from tessera.errors import DataError
from tessera.files import write_json, write_text
from tessera.papers.lights import LIGHTS, SIGNS
from tessera.papers.registry import FAMILIES, Entry, papers
from tessera.study.report import Report, Score, read_report
from tessera.study.verdict import VERDICTS

ROOT = Path(__file__).parent.parent
RESULTS, PICTURES, PAPER_PAGES = ROOT / "results", ROOT / "docs/pictures/demo", ROOT / "docs/papers"
DEMO = RESULTS / "demo.json"
PAGES = ("README.md", "docs/catalogue.md")
SIDE = 192  # pixels of a picture in the README, a whole multiple of the model's
SHOWN = 5  # pictures of a kind


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _demo() -> dict[str, Any] | None:
    return json.loads(DEMO.read_text(encoding="utf-8")) if DEMO.is_file() else None


def _nothing(command: str) -> str:
    return f"*Not measured yet: `{command}` writes it.*"


def demo_pictures() -> str:
    """What the demo's model says and draws, as it came."""
    found = _demo()
    if found is None:
        return _nothing("make demo")
    cell = '<img src="docs/pictures/demo/{}" width="150" alt="">'
    parts = []
    for title, key, words in (("It says", "captions", "said"), ("It draws", "drawings", "prompt")):
        rows = found[key][:SHOWN]
        if rows:
            marks = {True: " ✓", False: " ✗", None: ""}
            texts = [f"{row[words]}{marks[row['right']]}" for row in rows]
            pictures = [cell.format(Path(row["picture"]).name) for row in rows]
            parts.append(f"**{title}**\n\n" + table(pictures, [texts]))
    return "\n\n".join(parts)


def demo_scores() -> str:
    """The demo's scores with intervals and floors, its machine and time."""
    found = _demo()
    if found is None:
        return _nothing("make demo")
    rows = []
    for score in (Score(**fields) for fields in found["scores"]):
        if score.headline or score.floor is not None:
            span = f"{shown(score.low, score.percent)} to {shown(score.high, score.percent)}"
            floor = (
                "" if score.floor is None else f"{shown(score.floor, score.percent)} {'✓' if score.reached else '✗'}"
            )
            rows.append([score.name, shown(score.value, score.percent), span, floor, str(score.n)])
    machine = ", ".join(value for value in found["machine"].values() if value != "none")
    time = duration(sum(stage["seconds"] for stage in found["stages"]))
    scores = table(["held out", "score", "95 % interval", "floor", "n"], rows)
    return f"{scores}\n\n`{found['command']}`, {time} of training on {machine}."


def claims() -> str:
    """What each study in results/ says of its claims; the numbers are on the paper's page."""
    rows = []
    for file in sorted(RESULTS.glob("*.json")):
        result = json.loads(file.read_text(encoding="utf-8"))
        if judged := result.get("claims"):
            said = {verdict: [one["name"] for one in judged if one["verdict"] == verdict] for verdict in VERDICTS}
            rows.append([_paged(file.stem), *("<br>".join(names) for names in said.values())])
    if not rows:
        return _nothing("tessera reproduce vl-gpt")
    return table(["study", *VERDICTS], rows)


def _paged(study: str) -> str:
    """The name of a study, which leads to the page of its paper."""
    of = [page.stem for page in PAPER_PAGES.glob("*.md") if f"{study}-".startswith(f"{page.stem}-")]
    return f"[{study}](docs/papers/{max(of, key=len)}.md)" if of else study


def catalogue() -> str:
    """All works with their lights."""
    rows = [
        [_linked(one), str(one.year), "".join(SIGNS[one.lights[name]] for name in LIGHTS), "".join(one.families),
         f"[{one.title}](https://arxiv.org/abs/{one.arxiv}): {one.summary}"]
        for one in papers()
    ]  # fmt: skip
    legend = ", ".join(f"{letter} {name}" for letter, name in FAMILIES.items())
    built = sum(one.built for one in papers())
    head = f"{built} of {len(rows)} are built. Lights: {', '.join(LIGHTS)} (● on, ✗ off, – n/a, ○ not shown yet).\n\n"
    return head + f"Families: {legend}.\n\n" + table(["slug", "year", "lights", "family", "work"], rows)


def _linked(one: Entry) -> str:
    """A slug, which leads to the paper's page where it has one."""
    page = f"papers/{one.slug}.md"
    return f"[`{one.slug}`]({page})" if (ROOT / "docs" / page).is_file() else f"`{one.slug}`"


PARTS: dict[str, Callable[[], str]] = {
    "demo-pictures": demo_pictures,
    "demo-scores": demo_scores,
    "claims": claims,
    "catalogue": catalogue,
}


def rewritten(text: str) -> str:
    """A page with its generated parts made anew."""

    def fill(found: re.Match[str]) -> str:
        name = found["name"]
        return f"<!-- begin {name} -->\n{PARTS[name]()}\n<!-- end {name} -->"

    pattern = r"<!-- begin (?P<name>[\w-]+) -->\n.*?<!-- end (?P=name) -->"
    return re.sub(pattern, fill, text, flags=re.DOTALL)


def take_demo(run: Path) -> None:
    """Keep a run's report as results/demo.json, and the pictures that the README shows, enlarged."""
    report: Report = read_report(run)
    if PICTURES.exists():
        shutil.rmtree(PICTURES)
    PICTURES.mkdir(parents=True)
    names = [row.picture for row in report.captions[:SHOWN]] + [row.picture for row in report.drawings[:SHOWN]]
    for name in names:
        with Image.open(run / name) as picture:
            picture.resize((SIDE, SIDE), Image.Resampling.NEAREST).save(PICTURES / Path(name).name)
    values = dataclasses.asdict(report)
    for bulky in ("reconstructions", "answers", "pages", "in_context", "curves"):
        del values[bulky]
    write_json(DEMO, values)


def main(arguments: list[str]) -> int:
    """Write or check; gives the exit code."""
    if arguments[:1] == ["--demo"] and len(arguments) == 2:
        take_demo(Path(arguments[1]))
    elif arguments not in ([], ["--check"]):
        print(__doc__)
        return 2
    stale = []
    for name in PAGES:
        page = ROOT / name
        before = page.read_text(encoding="utf-8")
        after = rewritten(before)
        if after != before:
            stale.append(name)
            if arguments != ["--check"]:
                write_text(page, after)
    if stale:
        print(
            ("out of step with results/, run `make docs`: " if arguments == ["--check"] else "wrote ")
            + ", ".join(stale)
        )
    return 1 if stale and arguments == ["--check"] else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except DataError as error:
        sys.exit(str(error))
