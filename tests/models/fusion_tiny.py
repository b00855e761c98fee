"""Small fusion models, transformers' twins of them, and inputs for both."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LxmertConfig

from tessera.models.fusion import FusionConfig, Targets

SIZES: dict[str, Any] = {
    "vocab_size": 99, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "num_qa_labels": 11,
    "num_object_labels": 7, "num_attr_labels": 5, "max_position_embeddings": 20, "visual_feat_dim": 24,
    "l_layers": 2, "r_layers": 1, "x_layers": 2,
}  # fmt: skip


def tiny(**changes: Any) -> FusionConfig:
    """Our configuration of a tiny model."""
    return FusionConfig(**{**SIZES, **changes})


def tiny_theirs(**changes: Any) -> LxmertConfig:
    """transformers' configuration of the same."""
    return LxmertConfig(**{**SIZES, **changes})


def inputs(pairs: int = 3, words: int = 9, regions: int = 6, width: int = 24, seed: int = 0) -> dict[str, Tensor]:
    """Random inputs; the sentences have different lengths."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.arange(words, words - pairs, -1).clamp(min=3)
    return {
        "input_ids": torch.randint(1, 99, (pairs, words), generator=draw),
        "attention_mask": (torch.arange(words) < lengths[:, None]).long(),
        "visual_feats": torch.randn(pairs, regions, width, generator=draw),
        "visual_pos": torch.rand(pairs, regions, 4, generator=draw),
    }


def targets(pairs: int = 3, words: int = 9, regions: int = 6, width: int = 24, seed: int = 1) -> Targets:
    """Random targets of all five tasks."""
    draw = torch.Generator().manual_seed(seed)

    def drawn(high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=draw)

    asked = torch.rand(pairs, words, generator=draw) < 0.4
    return Targets(
        words=torch.where(asked, drawn(99, pairs, words), -100),
        features=torch.randn(pairs, regions, width, generator=draw),
        masked=torch.rand(pairs, regions, generator=draw) < 0.5,
        objects=drawn(7, pairs, regions),
        object_confidence=torch.rand(pairs, regions, generator=draw),
        attributes=drawn(5, pairs, regions),
        attribute_confidence=torch.rand(pairs, regions, generator=draw),
        matched=drawn(2, pairs),
        answers=torch.cat([drawn(11, pairs - 1), torch.tensor([-100])]),
    )
