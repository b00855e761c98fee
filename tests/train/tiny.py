"""A small classifier, its objective and an endless loader, for the tests of the engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tessera.train.engine import Stage


def tiny_model(seed: int = 0, dropout: float = 0.1) -> nn.Module:
    """[B, 8] -> [B, 5], with dropout, so that the generators matter."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Dropout(dropout), nn.Linear(16, 16), nn.Linear(16, 5))


class TinyLoader:
    """Batches of `size` samples out of `total`, in another order each epoch, sliced for `rank` of `world`."""

    def __init__(self, total: int = 24, size: int = 4, seed: int = 0, rank: int = 0, world: int = 1):
        self.total, self.size, self.seed, self.rank, self.world = total, size, seed, rank, world
        self.epoch = self.index = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            if self.index + self.size * self.world > self.total:
                self.epoch, self.index = self.epoch + 1, 0
            order = np.random.default_rng((self.seed, self.epoch)).permutation(self.total)
            start = self.index + self.rank * self.size
            self.index += self.size * self.world
            yield self.batch(order[start : start + self.size])

    def batch(self, chosen: np.ndarray) -> dict[str, Any]:
        """The samples `chosen`; labels of -100 are no targets, so batches differ in their counts."""
        x = torch.stack([torch.randn(8, generator=torch.Generator().manual_seed(int(i))) for i in chosen])
        y = torch.tensor([-100 if i % 3 == 0 else int(i) % 5 for i in chosen])
        place = torch.arange(1.0, len(chosen) + 1)
        order = (torch.from_numpy(np.asarray(chosen)) * place).sum()
        return {"x": x, "y": y, "order": order, "sample_ids": [f"s{i}" for i in chosen]}

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "index": self.index}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.index = state["epoch"], state["index"]

    def fingerprint(self) -> str:
        return f"tiny-{self.total}-{self.seed}"


def objective(model: nn.Module, batch: dict[str, Any]) -> dict[str, tuple[Tensor, Any, float]]:
    """Cross-entropy over the targets and a square penalty over all outputs: two counts that differ. `order` only logs
    which samples came in which order."""
    out = model(batch["x"])
    text = functional.cross_entropy(out, batch["y"], ignore_index=-100, reduction="sum")
    targets = (batch["y"] != -100).sum()
    return {
        "text": (text, targets, 1.0),
        "square": (out.square().sum(), out.numel() * (targets > 0), 0.1),
        "order": (batch["order"], targets > 0, 0.0),
    }


def tiny_stage(name: str = "one", steps: int = 12, **changes: Any) -> Stage:
    """A stage over the tiny parts; `changes` are fields of Stage."""
    fields = {"model": tiny_model(), "objective": objective, "loader": TinyLoader()} | changes
    return Stage(name=name, steps=steps, **fields)


def two_stages(rank: int = 0, world: int = 1, size: int = 4) -> Iterator[Stage]:
    """12 + 12 steps on one model: Muon with averaged weights, then AdamW with accumulation on a part of it."""
    from tessera.train.optim import Optimiser

    model = tiny_model(dropout=0.1 if world == 1 and size == 4 else 0.0)

    def loader(seed: int) -> TinyLoader:
        return TinyLoader(size=size // world, seed=seed, rank=rank, world=world)

    yield tiny_stage("one", model=model, loader=loader(0), optimiser=Optimiser(kind="muon"), average=0.9)
    yield tiny_stage("two", model=model, loader=loader(1), accumulate=2, trainable=("*", "!0.*"))


def metrics(out: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def assert_equal_runs(one: Path, other: Path) -> None:
    """The same log, byte for byte, and the same bytes in every checkpoint and final folder (weights, optimiser,
    generators, position)."""
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    folders = sorted(p.parent.relative_to(one) for p in one.glob("*/*/manifest.json"))
    assert folders
    assert folders == sorted(p.parent.relative_to(other) for p in other.glob("*/*/manifest.json"))
    for folder in folders:
        name = folder / "manifest.json"
        assert (one / name).read_text() == (other / name).read_text(), folder
