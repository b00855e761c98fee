"""How well a model restores what is hidden of pictures that it has not seen.

Legend: n pictures.
"""

from __future__ import annotations

import numpy as np
import torch

from tessera.data.images import Pixels
from tessera.data.source import Source
from tessera.evaluate.classification import BATCH
from tessera.models.masked_image import MaskedImageModel
from tessera.objectives.group_masking import GroupMasking, corrupted_batch


@torch.no_grad()
def restoration_errors(
    model: MaskedImageModel, source: Source, pixels: Pixels, masking: GroupMasking, seed: int = 0
) -> np.ndarray:
    """The mean absolute difference over the hidden values of each picture, float [n]. What is hidden of a picture
    depends on `seed` and its index alone. The model is in evaluation mode."""
    found = []
    for start in range(0, len(source), BATCH):
        places = range(start, min(start + BATCH, len(source)))
        clean = np.stack([pixels.one(source[place].images[0].pil()) for place in places])
        rngs = [np.random.default_rng([seed, place]) for place in places]
        batch = corrupted_batch(clean, [masking(one, rng) for one, rng in zip(clean, rngs, strict=True)])
        restored = model(batch["pixel_values"].to(model.device)).reconstruction.float().cpu()
        error = (restored - batch["targets"]).abs() * batch["mask"]
        found.append(error.mean(1).sum((1, 2)) / batch["mask"].sum((1, 2, 3)))
    return torch.cat(found).numpy()
