"""What the fusion models give.

Legend: B pairs of a sentence and a picture, L words, K regions, W width, V words of the vocabulary, A answers.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from transformers.utils import ModelOutput


@dataclass
class FusionOutput(ModelOutput):
    """`language` [B, L, W] and `vision` [B, K, W], the last states of both streams; `pooled` [B, W], the
    cross-modality vector; the hidden states of each stream after each of its layers, where they were asked for."""

    language: Tensor = None  # type: ignore[assignment]
    vision: Tensor = None  # type: ignore[assignment]
    pooled: Tensor = None  # type: ignore[assignment]
    language_hidden_states: tuple[Tensor, ...] | None = None
    vision_hidden_states: tuple[Tensor, ...] | None = None


@dataclass
class PretrainingOutput(ModelOutput):
    """`word_logits` [B, L, V], `matched_logits` [B, 2] (no, yes), `answer_logits` [B, A] or None, `regions`: "obj"
    [B, K, objects], "attr" [B, K, attributes], "feat" [B, K, F], as the configuration has them; `losses` by name, and
    `loss`, their weighted sum, where there were targets; `states`, of the encoders."""

    loss: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    word_logits: Tensor = None  # type: ignore[assignment]
    matched_logits: Tensor = None  # type: ignore[assignment]
    answer_logits: Tensor | None = None
    regions: dict[str, Tensor] | None = None
    states: FusionOutput | None = None


@dataclass
class AnswerOutput(ModelOutput):
    """`logits` [B, classes], and `loss` where there were labels."""

    loss: Tensor | None = None
    logits: Tensor = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Targets:
    """What pre-training asks for. A task without its fields is left out.

    words int64 [B, L], -100 where no word is asked for; features float [B, K, F], what the detector saw, and masked
    bool [B, K], where it was hidden; objects, attributes int64 [B, K] with the detector's confidences float [B, K];
    matched int64 [B], 1 where the sentence is of this picture; answers int64 [B], -100 for none.
    """

    words: Tensor | None = None
    features: Tensor | None = None
    masked: Tensor | None = None
    objects: Tensor | None = None
    object_confidence: Tensor | None = None
    attributes: Tensor | None = None
    attribute_confidence: Tensor | None = None
    matched: Tensor | None = None
    answers: Tensor | None = None

    def to(self, device: torch.device | str) -> Targets:
        """The same on `device`."""
        moved: dict[str, Any] = {
            field.name: value.to(device, non_blocking=True)
            for field in fields(self)
            if (value := getattr(self, field.name)) is not None
        }
        return replace(self, **moved)
