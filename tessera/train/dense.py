"""Learning a target for every pixel: its loader and its stage.

loader = dense_loader(world.source("depth"), DenseReader("depth", world.classes, pixels), batch=16)
trainer.run([dense_stage(model, loader, steps=500)])
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from tessera.data.loader import Loader, Samples
from tessera.data.sample import Sample
from tessera.data.source import Source
from tessera.models.diffusion.perception import PerceptionModel
from tessera.models.diffusion.perception.modeling import FROZEN
from tessera.objectives.dense import dense_loss
from tessera.train.optim import Optimiser
from tessera.train.stage import Stage

Arrays = dict[str, np.ndarray]


def dense_loader(
    source: Source, read: Callable[[Sample, np.random.Generator], Arrays], batch: int, *, seed: int = 0, rank: int = 0,
    world_size: int = 1, workers: int = 0,
) -> Loader[dict[str, Any]]:  # fmt: skip
    """Batches of what `read` makes of each sample, stacked by name, and "sample_ids".

    Args:
        read: a DenseReader, or what gives `latents` in place of `pixel_values`.
        batch: pictures of all processes together.
    """

    def prepare(sample: Sample, rng: np.random.Generator) -> tuple[Arrays, str]:
        return read(sample, rng), sample.id

    def collate(items: list[tuple[Arrays, str]]) -> dict[str, Any]:
        arrays = {name: np.stack([one[name] for one, _ in items]) for name in items[0][0]}
        return {name: torch.from_numpy(value) for name, value in arrays.items()} | {"sample_ids": [i for _, i in items]}

    samples = Samples(prepare, collate, batch)
    return Loader(source, samples, seed=seed, rank=rank, world_size=world_size, workers=workers)


def objective(model: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """The loss of the model's task over its pixels, or over its pictures for depth."""
    given = {name: value for name, value in batch.items() if name not in ("labels", "sample_ids")}
    loss = dense_loss(model.config.task, model(**given), batch["labels"])
    return {model.config.task: (loss.total, loss.number)}


def dense_stage(
    model: PerceptionModel, loader: Loader[dict[str, Any]], steps: int, *, optimiser: Optimiser, accumulate: int = 1
) -> Stage:
    """The stage that trains all of `model` but its autoencoder and its text tower."""
    frozen = [f"!{part}.*" for part in FROZEN if getattr(model, part) is not None]
    return Stage(
        name=model.config.task, model=model, objective=objective, loader=loader, steps=steps, accumulate=accumulate,
        optimiser=optimiser, trainable=("*", *frozen),
    )  # fmt: skip
