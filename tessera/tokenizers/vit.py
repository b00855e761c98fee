"""Encoder and decoder of ViT-VQGAN: patches to states, and states to patches, through plain transformers (Yu et al.
2022, arXiv 2110.04627, section 3.1).

Legend: B pictures of C channels and H x W pixels, h x w grid of P x P patches, N = h * w, W width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from tessera.layers.encoder import EncoderBlock
from tessera.layers.mlp import Mlp
from tessera.layers.positions import PositionTable


@dataclass(frozen=True, kw_only=True)
class ViTShape:
    """The inside of an encoder or a decoder.

    Args:
        grid: (h, w) that the positions are made for.
        head_width: of each head; width / heads by default.
        activation: within the blocks; "tanh" is the re-implementation's.
        tanh_head: two more layers after the blocks with tanh in between, as the text has it.
        positions: "learned", or "sine2d", the fixed table of the re-implementation.
    """

    grid: tuple[int, int]
    patch: int
    width: int
    depth: int
    heads: int
    mlp_width: int
    head_width: int | None = None
    activation: str = "gelu"
    qkv_bias: bool = True
    tanh_head: bool = True
    positions: Literal["learned", "sine2d"] = "learned"


class _Transformer(nn.Module):
    """Positions, blocks, a norm and the head: [B, N, W] -> [B, N, W]."""

    def __init__(self, shape: ViTShape) -> None:
        super().__init__()
        self.positions = PositionTable(shape.grid, shape.width, extra=0, kind=shape.positions)
        self.blocks = nn.ModuleList(
            EncoderBlock(
                shape.width, shape.heads, shape.mlp_width, activation=shape.activation, qkv_bias=shape.qkv_bias,
                head_width=shape.head_width, eps=1e-5,
            )
            for _ in range(shape.depth)
        )  # fmt: skip
        self.norm = nn.LayerNorm(shape.width)
        self.head = Mlp(shape.width, shape.mlp_width, "tanh") if shape.tanh_head else nn.Identity()

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        x = self.positions(x, grid)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class ViTEncoder(nn.Module):
    """Pictures [B, C, H, W] -> states [B, N, W]. At the Small size 25,306,624 parameters without head and with fixed
    positions, as re-implemented."""

    def __init__(self, shape: ViTShape, channels: int = 3) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, shape.width, shape.patch, shape.patch)
        self.transformer = _Transformer(shape)

    def forward(self, pictures: Tensor) -> Tensor:
        maps = self.patches(pictures)
        return self.transformer(maps.flatten(2).transpose(1, 2), (maps.shape[2], maps.shape[3]))


class ViTDecoder(nn.Module):
    """States [B, N, W] on a grid -> [B, out, H, W]. Nothing is squeezed at the end."""

    def __init__(self, shape: ViTShape, out: int = 3) -> None:
        super().__init__()
        self.transformer = _Transformer(shape)
        self.tiles = nn.ConvTranspose2d(shape.width, out, shape.patch, shape.patch)
        self.tiles.no_muon = True  # type: ignore[assignment]

    def forward(self, states: Tensor, grid: tuple[int, int]) -> Tensor:
        return self.tiles(self.transformer(states, grid).transpose(1, 2).unflatten(2, grid))
