"""Tokenizers with a codebook and models of their codes that are small enough for tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tessera.models.image_ar import ImageARConfig, ImageARModel
from tessera.models.vq import VQConfig, VQTokenizer

TINY: dict[str, Any] = {
    "image_size": 16, "patch_size": 4, "encoder_width": 16, "encoder_depth": 1, "encoder_heads": 2, "codes": 12,
    "code_width": 4,
}  # fmt: skip
CONV: dict[str, Any] = {**TINY, "architecture": "conv", "conv_widths": [4, 4, 8], "conv_blocks": 1}


def tokenizer(seed: int = 0, **changes: Any) -> VQTokenizer:
    """4 x 4 codes of 12, for pictures of 16 pixels a side."""
    torch.manual_seed(seed)
    return VQTokenizer(VQConfig(**{**TINY, **changes})).eval()


def image_model(seed: int = 0, **changes: Any) -> ImageARModel:
    """A model of those codes whose weights are large enough to matter."""
    torch.manual_seed(seed)
    fields = {"codes": 12, "rows": 4, "columns": 4, "width": 16, "depth": 3, "heads": 2, **changes}
    model = ImageARModel(ImageARConfig(**fields)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def pictures(count: int = 3, side: int = 16) -> Tensor:
    """Noise in [0, 1]."""
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def codes(count: int = 2) -> Tensor:
    """Ids [count, 16]."""
    return torch.randint(12, (count, 16), generator=torch.Generator().manual_seed(2))
