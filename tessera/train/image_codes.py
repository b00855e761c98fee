"""Learning pictures as codes: the loader of pictures, the stage of a tokenizer, those of a model of its codes.

loader = square_loader(source, pixels, batch=32)
trainer.run([tokenizer_stage(TokenizerInTraining(tokenizer, losses), loader, steps=500)])
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from tessera.data.images import Pixels
from tessera.data.loader import Loader, Samples
from tessera.data.mixture import Mixture
from tessera.data.sample import Sample
from tessera.data.source import Source
from tessera.models.image_ar.modeling import ImageARInTraining, predict, recognise
from tessera.models.vq.training import TokenizerInTraining, counts, restore
from tessera.train.classification import picture_loader
from tessera.train.optim import Optimiser
from tessera.train.stage import Stage


def square_loader(
    source: Source | Mixture, pixels: Pixels, batch: int, *, classes: Sequence[str] = (), seed: int = 0, rank: int = 0,
    world_size: int = 1, workers: int = 0,
) -> Loader[dict[str, Any]]:  # fmt: skip
    """Batches {"pixel_values": float [B, 3, S, S], "sample_ids"} of the first pictures of samples; with `classes` also
    "labels", as `picture_loader` gives them.

    Args:
        batch: pictures of all processes together.
    """
    places: dict[str, Any] = {"seed": seed, "rank": rank, "world_size": world_size, "workers": workers}
    if classes:
        assert not isinstance(source, Mixture)
        return picture_loader(source, classes, pixels, batch, **places)

    def prepare(sample: Sample, rng: np.random.Generator) -> tuple[np.ndarray, str]:
        return pixels.one(sample.images[0].pil(), rng), sample.id

    def collate(items: list[tuple[np.ndarray, str]]) -> dict[str, Any]:
        arrays, ids = zip(*items, strict=True)
        return {"pixel_values": torch.from_numpy(np.stack(arrays)), "sample_ids": list(ids)}

    return Loader(source, Samples(prepare, collate, batch), **places)


def tokenizer_stage(
    model: TokenizerInTraining, loader: Loader[dict[str, Any]], steps: int, *, optimiser: Optimiser | None = None,
    accumulate: int = 1, name: str = "tokenizer",
) -> Stage:  # fmt: skip
    """The stage that trains a tokenizer, and its critic where it has one."""
    return Stage(
        name=name, model=model, objective=restore, loader=loader, steps=steps, accumulate=accumulate,
        optimiser=optimiser or Optimiser(), trainable=model.trainable, counts=partial(counts, model=model),
        weights=model.losses.weights(model.tokenizer.config.commitment),
    )  # fmt: skip


def codes_stage(
    module: ImageARInTraining, loader: Loader[dict[str, Any]], steps: int, *, optimiser: Optimiser | None = None,
    accumulate: int = 1, name: str = "codes",
) -> Stage:  # fmt: skip
    """The stage that learns the next code; the tokenizer and the probe stay as they are."""
    without = ["!model.probe.*"] if module.model.probe is not None else []
    length = module.model.config.length
    return Stage(
        name=name, model=module, objective=predict, loader=loader, steps=steps, accumulate=accumulate,
        optimiser=optimiser or Optimiser(), trainable=["model.*", *without],
        counts=lambda batch: {"codes": len(batch["pixel_values"]) * length},
    )  # fmt: skip


def probe_stage(
    module: ImageARInTraining, loader: Loader[dict[str, Any]], steps: int, *, optimiser: Optimiser | None = None
) -> Stage:
    """The stage that fits the linear probe on frozen features of the middle block."""
    return Stage(
        name="probe", model=module, objective=recognise, loader=loader, steps=steps, optimiser=optimiser or Optimiser(),
        trainable=["model.probe.*"], counts=lambda batch: {"classes": len(batch["labels"])},
    )  # fmt: skip
