"""From tokens back to pixels.

Legend: B pictures, h x w grid, C width.
"""

from __future__ import annotations

from torch import Tensor, nn


class PixelHead(nn.Module):
    """Three layers on each token alone, then its tile of pixels: [B, h * w, C] -> [B, channels, h * P, w * Q].

    So light that the encoder before it must do the work (Atito et al. 2022, arXiv 2205.14986).

    Args:
        tile: (P, Q) pixels of one token.
    """

    def __init__(self, width: int, tile: tuple[int, int], channels: int = 3) -> None:
        super().__init__()
        layers = [layer for _ in range(3) for layer in (nn.Linear(width, width), nn.GELU())]
        self.mlp = nn.Sequential(*layers)
        self.tiles = nn.ConvTranspose2d(width, channels, tile, tile)
        self.tiles.no_muon = True  # type: ignore[assignment]

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        return self.tiles(self.mlp(tokens).transpose(1, 2).unflatten(2, grid))
