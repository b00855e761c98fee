"""A U-Net of Stable Diffusion's layout, tiny, whose values follow from a formula.

The official code is not here. `vpd_golden.json` holds what its UNetWrapper (commit 92095abdad, over the U-Net of
CompVis/stable-diffusion, commit 21f890f9) gives for these values, map by map, and then what its SimpleDecoding gives
for those of `pyramid`; all written down in every STEP-th place.
"""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from tests.formula import fill, values

WORDS, WIDTH, SIDE = 5, 24, 16
STEP = 29
DIMS = (6, 10, 12, 16)  # channels of a pyramid for the decoder of phrases
CONFIG = {
    "sample_size": SIDE, "block_out_channels": (32, 64, 64, 64), "cross_attention_dim": WIDTH, "attention_head_dim": 4
}  # fmt: skip


def unet() -> UNet2DConditionModel:
    return fill(UNet2DConditionModel(**CONFIG))


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Latents, timesteps and words of two pictures."""
    return values("latents", (2, 4, SIDE, SIDE), 1.0), torch.tensor([1, 700]), values("words", (2, WORDS, WIDTH), 1.0)


def pyramid() -> list[Tensor]:
    """Feature maps of DIMS channels from fine to coarse."""
    return [values(f"map {width}", (2, width, 16 >> stage, 16 >> stage), 1.0) for stage, width in enumerate(DIMS)]
