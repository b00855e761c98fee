"""A small classifier, its objective and an endless loader, for the tests of the engine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tessera.train.engine import Stage


def tiny_model(seed: int = 0, dropout: float = 0.1) -> nn.Module:
    """[B, 8] -> [B, 5], with dropout, so that the generators matter."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(8, 16), nn.GELU(), nn.Dropout(dropout), nn.Linear(16, 16), nn.Linear(16, 5)
    )


class TinyLoader:
    """Batches of `size` samples out of `total`, in another order each epoch, sliced for `rank` of `world`."""

    def __init__(self, total: int = 24, size: int = 4, seed: int = 0, rank: int = 0, world: int = 1):
        self.total, self.size, self.seed, self.rank, self.world = total, size, seed, rank, world
        self.epoch = self.index = 0
        self.seen: list[list[str]] = []

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            if self.index + self.size * self.world > self.total:
                self.epoch, self.index = self.epoch + 1, 0
            order = np.random.default_rng((self.seed, self.epoch)).permutation(self.total)
            start = self.index + self.rank * self.size
            chosen = order[start : start + self.size]
            self.index += self.size * self.world
            batch = self.batch(chosen)
            self.seen.append(batch["sample_ids"])
            yield batch

    def batch(self, chosen: np.ndarray) -> dict[str, Any]:
        """The samples `chosen`; labels of -100 are no targets, so batches differ in their counts."""
        x = torch.stack([torch.randn(8, generator=torch.Generator().manual_seed(int(i))) for i in chosen])
        y = torch.tensor([-100 if i % 3 == 0 else int(i) % 5 for i in chosen])
        return {"x": x, "y": y, "sample_ids": [f"s{i}" for i in chosen]}

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "index": self.index}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.index = state["epoch"], state["index"]

    def fingerprint(self) -> str:
        return f"tiny-{self.total}-{self.seed}"


def objective(model: nn.Module, batch: dict[str, Any]) -> dict[str, tuple[Tensor, Any, float]]:
    """Cross-entropy over the targets, and a square penalty over all outputs: two counts that differ."""
    out = model(batch["x"])
    text = functional.cross_entropy(out, batch["y"], ignore_index=-100, reduction="sum")
    return {
        "text": (text, (batch["y"] != -100).sum(), 1.0),
        "square": (out.square().sum(), out.numel() if (batch["y"] != -100).any() else 0, 0.1),
    }


def tiny_stage(name: str = "one", steps: int = 12, **changes: Any) -> Stage:
    """A stage over the tiny parts; `changes` are fields of Stage."""
    fields = {"model": tiny_model(), "objective": objective, "loader": TinyLoader()} | changes
    return Stage(name=name, steps=steps, **fields)
