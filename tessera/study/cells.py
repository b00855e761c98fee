"""Cells of a study: one arm with one seed, trained once and kept in a file of the study's folder."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tessera.errors import DataError
from tessera.files import write_json
from tessera.study.design import Arm, Outcome, Study
from tessera.study.machine import commit, describe_machine
from tessera.study.sharing import alone


@dataclass(frozen=True)
class Cell:
    """One arm with one seed: its outcome, how long it took, where and from which commit."""

    outcome: Outcome
    seconds: float
    machine: Mapping[str, Any]
    commit: str | None


def file_of(study: Study, arm: Arm, seed: int, folder: Path) -> Path:
    """Where an outcome is kept."""
    return folder / f"{study.arm_hash(arm)}-seed-{seed}.json"


def kept(file: Path) -> Cell | None:
    """The cell of a file, None where there is none.

    Raises:
        DataError: it holds something else.
    """
    if not file.is_file():
        return None
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
        return Cell(Outcome(**held["outcome"]), float(held["seconds"]), held["machine"], held["commit"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} is not the outcome of an arm; delete it and run again") from error


def train(study: Study, arm: Arm, seed: int, folder: Path, *, wait: bool = True) -> bool:
    """Train an arm with a seed and keep its outcome; False where another process did, or does, so.

    Args:
        folder: of the study.
        wait: for a process that has this cell in hand; else it is left to that process.

    Raises:
        UserError: a claimed metric that the arm does not give.
    """
    file = file_of(study, arm, seed, folder)
    lock = alone(folder, file)
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except TimeoutError:
        return False
    try:
        if file.is_file():
            return False
        _measure(study, arm, seed, file)
        return True
    finally:
        lock.release()


def _measure(study: Study, arm: Arm, seed: int, file: Path) -> None:
    began = time.monotonic()
    outcome = arm.run(seed)
    for claim in study.claims:
        if arm.name in claim.arms:
            outcome.value(claim.metric)
    plain = asdict(outcome) | {"items": {name: [float(x) for x in row] for name, row in outcome.items.items()}}
    plain["metrics"] = {name: float(value) for name, value in outcome.metrics.items()}
    kept = {
        "arm": arm.name,
        "seed": seed,
        "seconds": time.monotonic() - began,
        "machine": describe_machine(),
        "commit": commit(),
        "outcome": plain,
    }
    write_json(file, kept)
