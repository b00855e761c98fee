"""How a language model with eyes learns words while its eyes stay as they are.

Legend: M pictures, C width of what the connector reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tessera.data.blind import ScoredBatch
from tessera.data.images import Pixels
from tessera.data.packing import Batch
from tessera.data.sample import Image
from tessera.models.lvlm import LVLMForConditionalGeneration
from tessera.models.lvlm.outputs import LVLMOutput
from tessera.objectives.importance import Importance
from tessera.objectives.prioritised import NAMES, factors_of, prioritised
from tessera.objectives.routing import route
from tessera.train.features import FeatureStore
from tessera.train.stage import Terms


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

    def read(self, model: nn.Module, batch: Batch) -> LVLMOutput:
        """What `model` makes of a batch: scores of its learned words, and the words."""
        tuned: Any = model
        embeds = None
        if batch.images:
            if self._grid is None:
                self._grid = self.look(batch.images[:1])[1]
            embeds = tuned.connector(self.store(batch.images).to(batch.input_ids.device), self._grid)
        return tuned(
            batch.input_ids, labels=batch.labels, segment_ids=batch.segment_ids, image_embeds=embeds, num_text=1
        )

    def __call__(self, model: nn.Module, batch: Batch) -> Terms:
        """The sum of the cross-entropies of learned words, and their number."""
        text = self.read(model, batch).text
        assert text is not None
        return {"words": (text.total, text.number)}


class Prioritised(FrozenEyes):
    """The same with PRIOR's loss, on batches of `tessera.data.blind.ScoredPacker`.

    Args:
        importance: how much a word counts, by what a blind model thought of it.
    """

    def __init__(self, model: LVLMForConditionalGeneration, pixels: Pixels, importance: Importance) -> None:
        super().__init__(model, pixels)
        self.importance = importance

    def __call__(self, model: nn.Module, batch: Batch) -> Terms:
        """The weighted sum, and what `prioritised` looks at beside it."""
        assert isinstance(batch, ScoredBatch) and batch.blind is not None
        output = self.read(model, batch)
        assert output.logits is not None and output.words is not None
        factors = factors_of(self.importance, batch.labels, batch.segment_ids, batch.blind)
        return prioritised(output.logits, output.words, factors)


def count_words(batch: Batch) -> dict[str, int]:
    """How many targets each sum of `Prioritised` has, for the engine."""
    return dict.fromkeys(NAMES, int(route(batch.labels, None, batch.segment_ids).text.sum()))
