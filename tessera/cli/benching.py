"""`tessera bench`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tessera.cli.options import argument, option
from tessera.cli.printing import number, print_json, print_table


@dataclass
class Bench:
    """Speed against the peers and against this machine's ceiling: both in one process, taking turns, medians.

    Leave the machine alone while it runs; other work slows one side of a round and not the other.
    """

    name: str | None = argument("which bench (default: all)", None)
    out: Path = option("folder of the result files", Path("results"))
    json: bool = option("print the results as JSON", False)

    def run(self) -> None:
        from tessera.files import write_json
        from tessera.papers.registry import say
        from tessera.study.bench import BENCHES, bench

        found = []
        for name in [self.name] if self.name is not None else BENCHES:
            result = bench(name, tell=say)
            write_json(self.out / f"bench-{name}.json", result)
            found.append(result)
        if self.json:
            print_json(found)
            return
        rows = [row for result in found for row in result["rows"]]
        if races := [_race(row) for row in rows if "race" in row]:
            heads = ("race", "device", "type", "speed", "counted", "rounds", "ours, ms", "theirs, ms", "of ceiling")
            print_table(races, (*heads, "verdict"))
        if measures := [_measure(row) for row in rows if "measure" in row]:
            print_table(measures, ("measure", "device", "type", "value", "verdict"))
        for row in rows:
            if "operators" in row:
                print(f"\n{row['measure']}:")
                print_table([_operator(one) for one in row["operators"]], ("operator", "ms", "share", "calls"))


def _race(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["race"], row["device"], row["dtype"], f"{row['speed']:.2f} x", f"{row['counted']:.2f} x",
        f"{row['slowest']:.2f} to {row['fastest']:.2f}", number(row["ours_ms"]), number(row["theirs_ms"]),
        f"{row['of_ceiling']:.0%}" if row["of_ceiling"] else "",
        f"{row['verdict']} ({row['least']:g}, aim {row['aim']:g})" if row["aim"] else "",
    )  # fmt: skip


def _measure(row: dict[str, Any]) -> tuple[str, ...]:
    value = "" if row["value"] is None else f"{number(row['value'])} {row['unit']}"
    bounds = ", ".join(f"{name} {row[name]:g}" for name in ("floor", "aim") if row[name] is not None)
    return (row["measure"], row["device"], row["dtype"], value, row["verdict"] + (f" ({bounds})" if bounds else ""))


def _operator(one: dict[str, Any]) -> tuple[str, ...]:
    return (one["name"], number(one["ms"]), f"{one['share']:.0%}", f"{one['calls']:g}")
