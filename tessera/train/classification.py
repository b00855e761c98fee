"""Learning which class a picture shows: its loader and its stage.

loader = picture_loader(world.source("classes"), model.classes, pixels, batch=64)
trainer.run([classification_stage(model, loader, steps=500, mixing=Mixing())])
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from tessera.data.images import Pixels
from tessera.data.loader import Loader, Samples
from tessera.data.sample import Sample
from tessera.data.source import Source
from tessera.errors import BadSample
from tessera.objectives.classification import Mixing, class_cross_entropy
from tessera.train.optim import Optimiser
from tessera.train.stage import Stage

SMOOTHING = 0.1


def picture_loader(
    source: Source, classes: Sequence[str], pixels: Pixels, batch: int, *, seed: int = 0, rank: int = 0,
    world_size: int = 1, workers: int = 0,
) -> Loader[dict[str, Any]]:  # fmt: skip
    """Batches {"pixel_values": float [B, 3, S, S], "labels": int [B], "sample_ids"} of pairs of a picture and the name
    of its class.

    Args:
        batch: pictures of all processes together.
    """
    places = {name: place for place, name in enumerate(classes)}

    def prepare(sample: Sample, rng: np.random.Generator) -> tuple[np.ndarray, int, str]:
        if sample.text not in places:
            raise BadSample(f"the class {sample.text!r} is not one of the model's")
        return pixels.one(sample.images[0].pil(), rng), places[sample.text], sample.id

    def collate(items: list[tuple[np.ndarray, int, str]]) -> dict[str, Any]:
        arrays, labels, ids = zip(*items, strict=True)
        return {
            "pixel_values": torch.from_numpy(np.stack(arrays)),
            "labels": torch.tensor(labels),
            "sample_ids": list(ids),
        }

    samples = Samples(prepare, collate, batch)
    return Loader(source, samples, seed=seed, rank=rank, world_size=world_size, workers=workers)


def classification_stage(
    model: nn.Module, loader: Loader[dict[str, Any]], steps: int, *, name: str = "classify",
    optimiser: Optimiser | None = None, smoothing: float = SMOOTHING, mixing: Mixing | None = None,
    accumulate: int = 1, average: float | None = None, trainable: Sequence[str] = ("*",),
) -> Stage:  # fmt: skip
    """The stage that trains `model`, a `NamesClasses`, on the batches of `picture_loader`. Drop path is of the
    backbone's configuration.

    Args:
        smoothing: of the labels, see `class_cross_entropy`.
        mixing: of pictures in training; None for none.
    """

    def objective(model: Any, batch: dict[str, Any]) -> dict[str, Any]:
        pictures, targets = batch["pixel_values"], batch["labels"]
        if mixing is not None and model.training:
            pictures, targets = mixing(pictures, targets, len(model.classes))
        loss = class_cross_entropy(model(pictures).logits, targets, smoothing)
        return {"classes": (loss.total, loss.number)}

    return Stage(
        name=name, model=model, objective=objective, loader=loader, steps=steps, accumulate=accumulate,
        counts=lambda batch: {"classes": len(batch["labels"])}, average=average, trainable=trainable,
        optimiser=optimiser or Optimiser(),
    )  # fmt: skip
