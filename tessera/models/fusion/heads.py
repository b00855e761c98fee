"""Prediction heads of the fusion model, named as in the published checkpoints.

Legend: W width, V words of the vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tessera.layers.bert import EPS, Transform
from tessera.models.fusion.configuration import FusionConfig


def _output(inner: int, classes: int) -> nn.Linear:
    """The last layer of a head, which Muon leaves to AdamW."""
    layer = nn.Linear(inner, classes)
    layer.no_muon = True  # type: ignore[assignment]
    return layer


class WordHead(nn.Module):
    """A hidden word from its state, [..., W] -> [..., V]; the matrix is the word embedding's."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        self.transform = Transform(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, states: Tensor) -> Tensor:
        return self.decoder(self.transform(states)) + self.bias


class LanguageHeads(nn.Module):
    """Hidden words, and whether sentence and picture belong together (a linear map of the pooled vector)."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        self.predictions = WordHead(config)
        self.seq_relationship = _output(config.hidden_size, 2)


def region_classes(config: FusionConfig) -> dict[str, int]:
    """Outputs of each loss on regions that the configuration has: objects, attributes, features."""
    every = {
        "obj": (config.visual_obj_loss, config.num_object_labels),
        "attr": (config.visual_attr_loss, config.num_attr_labels),
        "feat": (config.visual_feat_loss, config.visual_feat_dim),
    }
    return {name: number for name, (wanted, number) in every.items() if wanted}


class RegionHead(nn.Module):
    """What a region is, from its state: [..., W] -> [..., classes] of each name of `region_classes`."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        self.transform = Transform(config)
        sizes = region_classes(config)
        self.decoder_dict = nn.ModuleDict({name: _output(config.hidden_size, size) for name, size in sizes.items()})

    def forward(self, states: Tensor) -> dict[str, Tensor]:
        states = self.transform(states)
        return {name: decoder(states) for name, decoder in self.decoder_dict.items()}


def answer_layers(inner: int, hidden: int, classes: int) -> nn.Sequential:
    """The two-layer classifier over pooled vectors: [B, inner] -> [B, classes]."""
    return nn.Sequential(nn.Linear(inner, hidden), nn.GELU(), nn.LayerNorm(hidden, eps=EPS), _output(hidden, classes))


class AnswerHead(nn.Module):
    """An answer out of a table, [B, W] -> [B, answers]."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.logit_fc = answer_layers(width, 2 * width, config.num_qa_labels)

    def forward(self, pooled: Tensor) -> Tensor:
        return self.logit_fc(pooled)

    @torch.no_grad()
    def take_over(self, other: AnswerHead, places: list[int | None]) -> int:
        """Start from a head over another table, row by row, as the official fine-tuning does.

        Args:
            places: for each answer of this table its place in the other's; None where that has none. Such an answer's
                row and bias become zero.

        Returns:
            How many answers were found.
        """
        for layer in (0, 2):
            self.logit_fc[layer].load_state_dict(other.logit_fc[layer].state_dict())
        mine, theirs = self.logit_fc[3].state_dict(), other.logit_fc[3].state_dict()
        for row, place in enumerate(places):
            for name, values in mine.items():
                values[row] = 0.0 if place is None else theirs[name][place]
        return sum(place is not None for place in places)
