"""From what a policy's queries gathered to the patches of a picture.

Legend: M pictures, Q queries a picture, N = h * w patches of D values, W width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tessera.layers.encoder import EncoderBlock
from tessera.layers.positions import PositionTable
from tessera.models.policy.configuration import GR1Config


class PatchDecoder(nn.Module):
    """Queries [M, Q, W] beside one mask token for each patch, two encoder blocks, patches [M, N, D]."""

    def __init__(self, config: GR1Config) -> None:
        super().__init__()
        width = config.width
        self.embed = nn.Linear(width, width)
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.places = PositionTable(config.grid, width, extra=0, kind="sine2d")
        self.blocks = nn.ModuleList(
            EncoderBlock(width, config.decoder_heads, 4 * width, eps=1e-5) for _ in range(config.decoder_depth)
        )
        self.norm = nn.LayerNorm(width)
        self.pixels = nn.Linear(width, 3 * config.patch_size**2)
        self.pixels.no_muon = True  # type: ignore[assignment]

    def forward(self, queries: Tensor) -> Tensor:
        grid = self.places.grid
        masked = self.places(self.mask_token.expand(1, grid[0] * grid[1], -1), grid)
        x = torch.cat([self.embed(queries), masked.expand(len(queries), -1, -1)], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.pixels(self.norm(x)[:, queries.shape[1] :])
