"""Write docs/performance.md and its plots: every number there comes from a results/bench-NAME.json.

Usage: python -m tools.performance           write
       python -m tools.performance --check   fail where the page or a plot is not what results/ say
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tessera.app.growth_plot import growth_plot
from tessera.files import write_text
from tessera.study.bench import BENCHES
from tools.readme import table

ROOT = Path(__file__).parent.parent
NOTES = Path(__file__).parent / "performance_notes.md"  # what was tried, written by hand, without figures
RESULTS, PAGE, PLOTS = ROOT / "results", ROOT / "docs/performance.md", ROOT / "docs/pictures"

HEAD = """# Speed

What `tessera bench` measured: each speed is a ratio of two ways that took turns in one process, and stands beside what
was demanded. Run it on your own machine, with nothing else running; the numbers below are of the machines that they
name.

```sh
tessera bench            # all
tessera bench train      # one of them
```

## Which switch matters when

- **Nothing to switch** in any training: sequences are packed and attended to each by itself, scores of words are
  computed at learned positions alone and block by block, bfloat16 is taken where the hardware multiplies it fast, and
  freed memory is kept for the next step.
- **A batch does not fit into memory**: `--set pretrain.accumulate=4` reads it in four parts. The losses stay what
  they were; each part should still fill the matrix units, so take no more parts than it needs.
- **One part of one row does not fit**: `activation_checkpointing` of a `Stage` keeps the input of each layer and
  computes the rest anew in the backward pass, for about a third more time.
- **Samples are longer than a row** (they are skipped and counted): `--set row_length=512`. Short samples cost the same
  in rows of any length.
- **Numbers are to be compared** with those of another machine or precision: `--precision fp32`.
- **Pictures come from files**: beside a GPU a thread reads and decodes them, `--workers 2` or more where one cannot
  keep up. Where the processor trains, reading takes its turn, which costs less; `--workers 1` where files are slow to
  come, as over a network. Batches are the same for any number. Features of frozen encoders are computed once a picture,
  so that this matters in the first epoch.
- **Few cores**: `OMP_NUM_THREADS` at the number of cores that the process has for itself.
- **A study of small models**: `tessera reproduce SLUG --processes 2` trains two pairs of arm and seed at once, each
  with half of the cores. Small models gain more from a process of their own than from threads. Each process loads parts
  and data for itself.
- **Words are generated on a processor**: nothing to switch in single precision, in which the layers are copied once in
  the order in which generation reads them. Weights that came from a file of 16 bits are held in 16 bits, with the
  same results and half the memory to read; those of a training in 32 bits are not. A model with adapters, in another
  type, or with more than a GiB of layers is run as it is; merge adapters before you serve.
- **Several GPUs**: `accelerate launch`, see [training](training.md).
"""


def page() -> dict[Path, str]:
    """Files and their text: the page, and the plots that it shows."""
    files: dict[Path, str] = {}
    parts = [HEAD.strip()]
    for name, (_, what) in BENCHES.items():
        file = RESULTS / f"bench-{name}.json"
        parts.append(f"## `tessera bench {name}`: {what}")
        if not file.is_file():
            parts.append("*Not measured yet.*")
            continue
        result = json.loads(file.read_text(encoding="utf-8"))
        parts += tables(result["rows"])
        for number, row in enumerate(row for row in result["rows"] if "points" in row):
            plot = PLOTS / f"bench-{name}-{number + 1}.svg"
            files[plot] = growth_plot(row)
            parts.append(f"![{row['measure']}](pictures/{plot.name})")
        parts.append(made_on(result))
    parts.append(NOTES.read_text(encoding="utf-8"))
    return {PAGE: "\n\n".join(parts), **files}


def tables(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Races, with the peer's multiply-adds over ours where they differ, and then what is no race."""
    if races := [row for row in rows if "race" in row]:
        heads = (
            "race",
            "device",
            "against",
            "times as fast",
            "counted",
            "rounds",
            "ours, ms",
            "theirs, ms",
            "of the ceiling",
            "verdict",
        )
        yield table(heads, [_race(row) for row in races])
    if measures := [row for row in rows if "measure" in row]:
        yield table(("what", "device", "type", "measured", "demanded", "verdict"), [_measure(row) for row in measures])
        for row in measures:
            if "operators" in row:
                yield f"**{row['measure']}**"
                yield table(("operator", "ms", "share", "calls"), [_operator(one) for one in row["operators"]])
        if arithmetic := {row["measure"]: row["how"] for row in measures if row["how"] and row["floor"] is not None}:
            yield "\n".join(f"- {name}: {how}." for name, how in arithmetic.items())


def _race(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        row["race"], f"{row['device']}, {row['dtype']}", row["peer"], f"**{row['speed']:.2f}**",
        f"{row['counted']:.2f}" if row.get("counted", 1) != 1 else "",  # older results have none
        f"{row['slowest']:.2f} to {row['fastest']:.2f}", f"{row['ours_ms']:,.4g}", f"{row['theirs_ms']:,.4g}",
        f"{row['of_ceiling']:.0%}" if row["of_ceiling"] else "",
        f"{row['verdict']} (floor {row['least']:.3g}, aim {row['aim']:.3g})" if row["aim"] else "",
    )  # fmt: skip


def _measure(row: Mapping[str, Any]) -> tuple[str, ...]:
    asked = ", ".join(f"{name} {row[name]:g}" for name in ("floor", "aim") if row[name] is not None)
    value = "" if row["value"] is None else f"{row['value']:,.4g} {row['unit']}".strip()
    return (row["measure"], row["device"], row["dtype"], value, asked, row["verdict"])


def _operator(one: Mapping[str, Any]) -> tuple[str, ...]:
    return (f"`{one['name']}`", f"{one['ms']:,.4g}", f"{one['share']:.0%}", f"{one['calls']:g}")


def made_on(result: Mapping[str, Any]) -> str:
    """The machine and the commit of a result."""
    machine = result["machine"]
    devices = ", ".join(
        [machine["cpu"], f"{machine['cores']} cores", *(one["name"] for one in machine["accelerators"])]
    )
    torch = result["versions"].get("torch", "?")
    return f"{devices}; PyTorch {torch}, {result['threads']} threads; commit {str(result['commit'])[:9]}."


def main(arguments: Sequence[str]) -> int:
    """Write or check; gives the exit code."""
    check = list(arguments) == ["--check"]
    stale = []
    for file, text in page().items():
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            stale.append(file.name)
            if not check:
                write_text(file, text)
    if stale:
        print(("out of step with results/, run `make docs`: " if check else "wrote ") + ", ".join(stale))
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
