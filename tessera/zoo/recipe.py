"""What a mini part needs to be built: a stage for the engine, a way to save, scores and the gates they must pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from tessera.evaluate.intervals import Estimate
from tessera.train.stage import Stage


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one mini part is trained and judged.

    Args:
        about: one sentence on what the part is.
        stage: `(seed, steps) -> Stage`, or several that follow one another and have `steps` together; the parts that
            they stand on come from the zoo.
        save: writes the trained part of the last stage's model into a folder, in the published layout of its class.
        scores: measures a saved part on held-out pictures and combinations.
        gates: score name -> the least value with which a part ships.
        reading: makes of a folder of files the recipe that learns from them too; None where it takes none.
    """

    name: str
    about: str
    steps: int
    stage: Callable[[int, int], Stage | Iterable[Stage]]
    save: Callable[[nn.Module, Path], None]
    scores: Callable[[Path], dict[str, Estimate]]
    gates: Mapping[str, float]
    reading: Callable[[Path], Recipe] | None = None


class Feed:
    """Batches that are a pure function of (seed, step): the loader of a recipe that draws its own data.

    Args:
        make: `rng -> batch`.
        held: hash of what the batches are drawn from.
    """

    def __init__(self, make: Callable[[np.random.Generator], Any], seed: int, held: str):
        self.make, self.seed, self.held = make, seed, held
        self.step = 0

    def __iter__(self) -> Iterator[Any]:
        while True:
            batch = self.make(np.random.default_rng((self.seed, self.step)))
            self.step += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """The number of the next batch."""
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Go on with the batch of that number."""
        self.step = int(state["step"])

    def fingerprint(self) -> str:
        """Hash of what the batches are drawn from."""
        return f"{self.held}/{self.seed}"
