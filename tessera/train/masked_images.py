"""Learning to restore pictures of which groups of pixels are hidden: its loader and its stage.

loader = masked_loader(source, pixels, GroupMasking(align=4), batch=64)
trainer.run([restoring_stage(MaskedImageModel.over("vit-mini"), loader, steps=500)])
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tessera.data.images import Pixels
from tessera.data.loader import Loader, Samples
from tessera.data.mixture import Mixture
from tessera.data.sample import Sample
from tessera.data.source import Source
from tessera.models.masked_image import MaskedImageModel, restore
from tessera.objectives.group_masking import Corrupted, GroupMasking, corrupted_batch
from tessera.train.optim import Optimiser
from tessera.train.stage import Stage


def masked_loader(
    source: Source | Mixture, pixels: Pixels, masking: GroupMasking, batch: int, *, seed: int = 0, rank: int = 0,
    world_size: int = 1, workers: int = 0,
) -> Loader[dict[str, Any]]:  # fmt: skip
    """Batches {"pixel_values", "targets": float [B, 3, S, S], "mask": bool [B, 1, S, S], "sample_ids"} of the first
    pictures of samples: corrupted, clean with the same augmentation, and where they differ. Partners are of the part of
    the batch that a process reads.

    Args:
        batch: pictures of all processes together.
    """

    def prepare(sample: Sample, rng: np.random.Generator) -> tuple[np.ndarray, Corrupted, str]:
        clean = pixels.one(sample.images[0].pil(), rng)
        return clean, masking(clean, rng), sample.id

    def collate(items: list[tuple[np.ndarray, Corrupted, str]]) -> dict[str, Any]:
        clean = np.stack([one for one, _, _ in items])
        return {**corrupted_batch(clean, [one for _, one, _ in items]), "sample_ids": [name for _, _, name in items]}

    samples = Samples(prepare, collate, batch)
    return Loader(source, samples, seed=seed, rank=rank, world_size=world_size, workers=workers)


def restoring_stage(
    model: MaskedImageModel, loader: Loader[dict[str, Any]], steps: int, *, name: str = "pretrain",
    optimiser: Optimiser | None = None, accumulate: int = 1,
) -> Stage:  # fmt: skip
    """The stage that trains `model` on the batches of `masked_loader`."""

    def counts(batch: dict[str, Any]) -> dict[str, int]:
        clean = batch["targets"]
        return {"pixels": clean.numel() if model.config.everywhere else int(batch["mask"].sum()) * clean.shape[1]}

    return Stage(
        name=name, model=model, objective=restore, loader=loader, steps=steps, accumulate=accumulate, counts=counts,
        optimiser=optimiser or Optimiser(),
    )  # fmt: skip
