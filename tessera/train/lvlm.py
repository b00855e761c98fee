"""How a language model with eyes learns words while its eyes stay as they are.

Legend: M pictures, C width of what the connector reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tessera.data.images import Pixels
from tessera.data.packing import Batch
from tessera.data.sample import Image
from tessera.models.lvlm import LVLMForConditionalGeneration
from tessera.train.features import FeatureStore


class FrozenEyes:
    """The objective of a Stage: the next word, of pictures that the frozen encoder looks at once each.

        model.vision.requires_grad_(False)
        Stage(objective=FrozenEyes(model, pixels), trainable=("connector.*", "language_model.*"), ...)

    Its loader's packer leaves pictures undecoded (`pixels=None`). A step in which no picture is shown shows none to
    the connector, so use it where every batch has one.

    Args:
        model: whose eyes these are.
        pixels: how pictures enter them.
    """

    def __init__(self, model: LVLMForConditionalGeneration, pixels: Pixels) -> None:
        self.model, self.pixels = model, pixels
        self.store = FeatureStore(lambda images: self.look(images)[0])
        self._grid: tuple[int, int] | None = None

    @torch.no_grad()
    def look(self, images: Sequence[Image]) -> tuple[Tensor, tuple[int, int]]:
        """What the connector reads of pictures, [M, S, C], and its grid."""
        pixels = torch.from_numpy(np.stack([self.pixels.one(image.pil()) for image in images]))
        return self.model.visual_features(pixels.to(self.model.device))

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, tuple[Tensor, int]]:
        """The sum of the cross-entropies of learned words, and their number."""
        tuned: Any = model
        embeds = None
        if batch.images:
            if self._grid is None:
                self._grid = self.look(batch.images[:1])[1]
            embeds = tuned.connector(self.store(batch.images).to(batch.input_ids.device), self._grid)
        output = tuned(
            batch.input_ids, labels=batch.labels, segment_ids=batch.segment_ids, image_embeds=embeds, num_text=1
        )
        return {"words": (output.text.total, output.text.number)}
