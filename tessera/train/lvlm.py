"""How a language model with eyes learns words: pictures that frozen eyes look at once each, or eyes that learn too.

Legend: M pictures, T what the encoder is shown of all of them (T > M where pictures are tiled), N tokens of each, C
width of what the connector reads, d width of the language model.
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
from tessera.train.features import AT_ONCE, FeatureStore
from tessera.train.stage import Terms


class NextWord:
    """The objective of a Stage: the next word, of pictures that a frozen encoder looks at once each; one in which
    something is trained looks at them anew in every step.

        model.vision.requires_grad_(False)
        Stage(objective=NextWord(model, pixels), trainable=("connector.*", "language_model.*"), ...)

    Its loader's packer leaves pictures undecoded (`pixels=None`).

    Args:
        model: whose eyes these are.
        pixels: how pictures enter them.
    """

    def __init__(self, model: LVLMForConditionalGeneration, pixels: Pixels) -> None:
        self.model, self.pixels = model, pixels
        self.store = FeatureStore(lambda images: self.look(images)[0])
        self._grid: tuple[int, int] | None = None

    @torch.no_grad()
    def look(self, images: Sequence[Image]) -> tuple[list[Tensor], tuple[int, int]]:
        """What the connector reads of each picture, [1, S, C], or of its t tiles, [t, S, C]; and its grid."""
        views = [self.pixels.several(image.pil()) for image in images]
        shown = _stacked(views).to(self.model.device)
        seen = [self.model.visual_features(part) for part in shown.split(AT_ONCE)]
        return list(torch.cat([features for features, _ in seen]).split([len(some) for some in views])), seen[0][1]

    def embeds(self, tuned: Any, images: Sequence[Image]) -> Tensor:
        """What the language model of `tuned` sees of pictures, [T, N, d]; of none [0, N, d], from which zeros flow back
        to the connector."""
        device, size = tuned.device, self.pixels.size
        if not images:
            return tuned.encode_images(torch.zeros(0, 3, size, size, device=device))
        if any(weight.requires_grad for weight in tuned.vision.parameters()):
            return tuned.encode_images(_stacked([self.pixels.several(image.pil()) for image in images]).to(device))
        if self._grid is None:
            self._grid = self.look(images[:1])[1]
        return tuned.connector(torch.cat(self.store.each(images)).to(device), self._grid)

    def read(self, model: nn.Module, batch: Batch) -> LVLMOutput:
        """What `model` makes of a batch: scores of its learned words, and the words."""
        tuned: Any = model
        return tuned(
            batch.input_ids, labels=batch.labels, segment_ids=batch.segment_ids,
            image_embeds=self.embeds(tuned, batch.images), num_text=1,
        )  # fmt: skip

    def __call__(self, model: nn.Module, batch: Batch) -> Terms:
        """The sum of the cross-entropies of learned words, and their number."""
        text = self.read(model, batch).text
        assert text is not None
        return {"words": (text.total, text.number)}


class Prioritised(NextWord):
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


def _stacked(views: Sequence[Sequence[np.ndarray]]) -> Tensor:
    """Pixels [T, 3, S, S] of pictures, each one view or several."""
    return torch.from_numpy(np.stack([view for some in views for view in some]))
