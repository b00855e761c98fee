"""The pre-norm encoder block that vision transformers stack.

Legend: B batch, L positions, W width.
"""

from __future__ import annotations

from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from tessera.layers.drop_path import DropPath
from tessera.layers.mlp import Mlp
from tessera.layers.multihead import SelfAttention


class EncoderBlock(GradientCheckpointingLayer):
    """x + attention(norm x), x + mlp(norm x), [B, L, W] -> [B, L, W] (Dosovitskiy et al. 2021).

    Args:
        qkv_bias, scale, head_width: of the attention, see `SelfAttention`.
        drop_path: chance that a branch is left out for one example in training.
        eps: of both norms.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_width: int,
        *,
        activation: str = "gelu",
        qkv_bias: bool = True,
        scale: float | None = None,
        head_width: int | None = None,
        drop_path: float = 0.0,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = SelfAttention(width, heads, qkv_bias=qkv_bias, scale=scale, head_width=head_width)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, mlp_width, activation)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))
