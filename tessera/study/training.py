"""A training of a study's arm: one that was stopped goes on, and its folder is gone once it was read."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tessera.train.engine import Stage, Trainer
from tessera.train.log import read_lines


@dataclass(frozen=True)
class Trained:
    """What a training came to.

    Args:
        model: that of its last stage, with its final weights.
        steps, samples: taken and seen in all stages.
    """

    model: Any
    steps: int
    samples: int


@contextmanager
def trained(trainer: Trainer, stages: Iterable[Stage], steps: int) -> Iterator[Trained]:
    """Train `stages`; within, their folder is still there, so that a study that is stopped while it judges finds them
    finished. Left without an error, the folder is deleted.

    Args:
        trainer: one that resumes, in a folder of its own.
        stages: a generator is asked for each when PyTorch's generator is seeded for it, so that new weights follow from
            the seed.
        steps: of all stages.

    Raises:
        TesseraError: as `Trainer.run`.
    """
    models: list[Any] = []

    def seen() -> Iterator[Stage]:
        for stage in stages:
            models.append(stage.model)
            yield stage

    trainer.run(seen(), steps)
    lines = read_lines(trainer.out / "timings.jsonl")
    yield Trained(models[-1], len(lines), sum(line["samples"] for line in lines))
    shutil.rmtree(trainer.out)
