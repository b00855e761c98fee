"""What visual embeddings are predicted with, where one layer is too little to say outlines in."""

from __future__ import annotations

from torch import Tensor, nn

from tessera.layers.mlp import Mlp

DEPTH = 3


class ResidualHead(nn.Module):
    """To a hidden state [..., d] is added, DEPTH times, what two layers make of it; a last layer gives the embedding
    [..., d]. Each begins by normalising.

    Args:
        width: d.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(width), Mlp(width, 2 * width)) for _ in range(DEPTH))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.out(self.norm(hidden))
