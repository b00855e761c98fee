"""Races: ours against a peer at the same work, in one process, taking turns, the median of several rounds.

A bench is a function that gives `Race`s, and `Measure`s of what is no race, for a device; a new one is a line in
BENCHES. Speeds are also held against this machine's own ceiling, the rate of products that run in the same rounds.
"""

from __future__ import annotations

import datetime
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch

from tessera.errors import UserError, nearest
from tessera.study.machine import commit, describe_machine, versions

# Name -> (module:function of a device, what is raced or measured).
BENCHES: dict[str, tuple[str, str]] = {
    "backbones": ("tessera.study.bench_backbones:races", "image encoders against transformers"),
    "reduce": ("tessera.study.bench_reduce:races", "models with fewer tokens against themselves with all"),
    "ceiling": ("tessera.papers.vl_gpt_bench:ceiling", "what this machine can do at most"),
    "train": ("tessera.papers.vl_gpt_bench:races", "training steps of VL-GPT against the plain way"),
    "profile": (
        "tessera.papers.vl_gpt_bench_profile:measures",
        "which operators take the time of a training step",
    ),
    "growth": ("tessera.papers.vl_gpt_growth:growth", "how the time of a training step grows"),
    "generate": ("tessera.papers.vl_gpt_bench_generate:races", "words and pictures against transformers and diffusers"),
    "data": ("tessera.papers.vl_gpt_bench_data:races", "reading against webdataset; what a training step waits for"),
    "start": ("tessera.papers.vl_gpt_bench_start:races", "commands in fresh processes against the libraries alone"),
}
ROUNDS = 7
WARM = 2
PRODUCT = {"cpu": 1536, "cuda": 8192}  # side of the matrices whose product is the ceiling


def _nothing(row: Mapping[str, Any]) -> Iterable[Measure]:
    return ()


@dataclass(frozen=True, kw_only=True)
class Race:
    """Two ways to the same result.

    Args:
        peer: whose way the other one is.
        macs: multiply-adds of one run, known by counting.
        dtype: in which they are multiplied.
        least, aim: the peer's time over ours that is demanded, and that is hoped for.
        counted: the peer's multiply-adds over ours, where they differ.
        ceiling: the machine's best at this work and its multiply-adds; by default one large product.
        follows: what is measured of the race's row, in rows of their own.
        warm: runs of each before the first round, in which kernels are chosen and memory is taken; None: WARM.
        rounds: at most so many, where one of them takes long.
    """

    name: str
    peer: str
    ours: Callable[[], object]
    theirs: Callable[[], object]
    macs: float
    dtype: torch.dtype
    least: float
    aim: float
    counted: float = 1.0
    ceiling: tuple[Callable[[], object], float] | None = None
    follows: Callable[[Mapping[str, Any]], Iterable[Measure]] = _nothing
    warm: int | None = None
    rounds: int = ROUNDS


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A number that is no race.

    Args:
        take: measures it: the value, None where this machine cannot tell, or JSON values with `value` among them.
        floor, aim: what is demanded and what is hoped for; less is better where the aim is below the floor.
        how: the arithmetic, in a sentence.
    """

    name: str
    take: Callable[[], float | None | Mapping[str, Any]]
    unit: str
    dtype: str = ""
    floor: float | None = None
    aim: float | None = None
    how: str = ""


Opener = Callable[[torch.device], Iterator[Race | Measure]]


def devices() -> list[torch.device]:
    """The processor, and a GPU where there is one."""
    return [torch.device("cpu"), *([torch.device("cuda")] if torch.cuda.is_available() else [])]


def bench(name: str, *, rounds: int = ROUNDS, tell: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Run every race of a bench on every device of this machine.

    Args:
        tell: takes a line before each race.

    Returns:
        JSON values: `rows` as `run` gives them, with machine, versions, threads, commit and time.

    Raises:
        UserError: there is no bench of this name.
    """
    if name not in BENCHES:
        raise UserError(f"there is no bench {name!r}{nearest(name, BENCHES)}")
    module, function = BENCHES[name][0].split(":")
    opener: Opener = getattr(import_module(module), function)
    rows = []
    for device in devices():
        for entry in opener(device):
            if tell is not None:
                tell(f"{entry.name} on {device.type}")
            rows += measured(entry, device, rounds)
    return {
        "bench": name,
        "rows": rows,
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "machine": describe_machine(),
        "versions": versions(),
        "commit": commit(),
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def measured(entry: Race | Measure, device: torch.device, rounds: int = ROUNDS) -> list[dict[str, Any]]:
    """The rows of an entry: a race's own and those of what follows from it, or a measure's."""
    if isinstance(entry, Measure):
        return [read(entry, device)]
    row = run(entry, device, rounds)
    return [row, *(read(one, device) for one in entry.follows(row))]


def read(measure: Measure, device: torch.device) -> dict[str, Any]:
    """The row of a measure: its name under `measure`, its `value`, what was asked of it, and the `verdict`."""
    taken = measure.take()
    found = dict(taken) if isinstance(taken, Mapping) else {"value": taken}
    return {
        "measure": measure.name, "device": device.type, "dtype": measure.dtype, "unit": measure.unit, **found,
        "floor": measure.floor, "aim": measure.aim, "how": measure.how, "verdict": judge(found["value"], measure),
    }  # fmt: skip


def run(race: Race, device: torch.device, rounds: int = ROUNDS) -> dict[str, Any]:
    """One race: seconds of each, and how many times as fast ours is.

    Returns:
        `speed` as the median over the rounds, `counted` gain beside it, `slowest` and `fastest` round of `speed`,
        `ours_ms` and `theirs_ms` as medians, `of_ceiling`, the share of the rate of its `ceiling` that
        ours reaches, and `verdict`.
    """
    product, product_macs = race.ceiling or _large_product(device, race.dtype)
    ways: Mapping[str, Callable[[], object]] = {"ours": race.ours, "theirs": race.theirs, "ceiling": product}
    for way in ways.values():
        for _ in range(WARM if race.warm is None else race.warm):
            way()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(min(rounds, race.rounds)):
        for name in sorted(ways, reverse=bool(number % 2)):  # turn and turn about, so that no one always comes first
            seconds[name].append(timed(ways[name], device))
    speeds = [theirs / ours for ours, theirs in zip(seconds["ours"], seconds["theirs"], strict=True)]
    median = {name: statistics.median(row) for name, row in seconds.items()}
    rate = product_macs / median["ceiling"]
    speed = statistics.median(speeds)
    return {
        "race": race.name, "device": device.type, "dtype": str(race.dtype).removeprefix("torch."), "peer": race.peer,
        "speed": speed, "counted": race.counted, "slowest": min(speeds), "fastest": max(speeds),
        "ours_ms": 1e3 * median["ours"], "theirs_ms": 1e3 * median["theirs"],
        "of_ceiling": race.macs / median["ours"] / rate, "least": race.least, "aim": race.aim,
        "verdict": verdict(speed, race),
    }  # fmt: skip


def verdict(speed: float, race: Race) -> str:
    """What is said of a speed; nothing where nothing is asked."""
    if not race.aim:
        return ""
    if speed >= race.aim:
        return "reaches the aim"
    return "fast enough" if speed >= race.least else "too slow"


def judge(value: float | None, measure: Measure) -> str:
    """What is said of a measure's value; nothing where nothing is asked."""
    if value is None:
        return "not measured here"
    if measure.floor is None:
        return ""
    less = measure.aim is not None and measure.aim < measure.floor
    reached = [
        bound is not None and (value <= bound if less else value >= bound) for bound in (measure.floor, measure.aim)
    ]
    return "reaches the aim" if reached[1] else "reaches the floor" if reached[0] else "short of the floor"


def _large_product(device: torch.device, dtype: torch.dtype) -> tuple[Callable[[], object], float]:
    side = PRODUCT[device.type]
    matrix = torch.randn(side, side, device=device).to(dtype)
    return lambda: matrix @ matrix, float(side**3)


def timed(way: Callable[[], object], device: torch.device) -> float:
    """Seconds of one run, to its end on the device."""
    began = time.perf_counter()
    way()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began
