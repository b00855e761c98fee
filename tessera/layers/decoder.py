"""A stack of pre-norm decoder blocks: causal self-attention, cross-attention, MLP.

Legend: B batch, L positions, S memory positions, W width, M memory width.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from tessera.layers.multihead import CrossAttention, SelfAttention


class DecoderBlock(GradientCheckpointingLayer):
    """x + self(norm x), x + cross(norm x, memory), x + mlp(norm x). Equals torch.nn.TransformerDecoderLayer
    with norm_first=True and activation='gelu'."""

    def __init__(self, width: int, heads: int, mlp_width: int, memory_width: int) -> None:
        super().__init__()
        self.self_norm = nn.LayerNorm(width)
        self.self_attention = SelfAttention(width, heads, causal=True)
        self.cross_norm = nn.LayerNorm(width)
        self.cross_attention = CrossAttention(width, heads, memory_width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, mlp_width)
        self.mlp_out = nn.Linear(mlp_width, width)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        x = x + self.self_attention(self.self_norm(x))
        x = x + self.cross_attention(self.cross_norm(x), memory)
        return x + self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(x))))


class DecoderStack(nn.Module):
    """`depth` decoder blocks and a final norm.

    With width 1024 and MLP 4096, 12 blocks hold 201,562,112 parameters (VL-GPT, image tokenizer: "standard
    transformer decoder"; width after the published total).

    Args:
        memory_width: M; the width itself by default.
    """

    def __init__(self, width: int, depth: int, heads: int, mlp_width: int, memory_width: int | None = None) -> None:
        super().__init__()
        blocks = (DecoderBlock(width, heads, mlp_width, memory_width or width) for _ in range(depth))
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """x [B, L, W], memory [B, S, M] -> [B, L, W]; position l reads x up to l and the whole memory."""
        for block in self.blocks:
            x = block(x, memory)
        return self.norm(x)
