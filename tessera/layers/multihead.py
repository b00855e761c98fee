"""Multi-head attention with its projections.

Legend: B batch, L positions, S memory positions, W width, M memory width.
"""

from __future__ import annotations

from torch import Tensor, nn

from tessera.layers.attention import attend


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, L, W] -> [B, heads, L, W / heads]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


class SelfAttention(nn.Module):
    """Multi-head self-attention, [B, L, W] -> [B, L, W].

    Args:
        causal: position i reads positions 0..i, else all read all.
        qkv_bias: whether the projections to query, key and value have biases; the one out of attention has.
        scale: factor on the scores; D ** -0.5 by default.
        head_width: D of each head; W / heads by default.
    """

    def __init__(
        self, width: int, heads: int, *, causal: bool = False, qkv_bias: bool = True, scale: float | None = None,
        head_width: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        inner = width if head_width is None else heads * head_width
        self.heads = heads
        self.causal = causal
        self.scale = scale
        self.qkv = nn.Linear(width, 3 * inner, bias=qkv_bias)
        self.out = nn.Linear(inner, width)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of x [B, L, W], each [B, heads, L, D]."""
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        return q, k, v

    def read(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, dropout: float = 0.0) -> Tensor:
        """[B, L, W] from what `project` gives; `mask` and `dropout` as `attend` takes them."""
        read = attend(q, k, v, mask=mask, causal=self.causal, scale=self.scale, dropout=dropout)
        return self.out(read.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.read(*self.project(x))


class CrossAttention(nn.Module):
    """Multi-head attention of x [B, L, W] over a memory [B, S, M], which every position reads whole."""

    def __init__(self, width: int, heads: int, memory_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(memory_width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        k, v = (split_heads(part, self.heads) for part in self.kv(memory).chunk(2, dim=-1))
        return self.out(attend(split_heads(self.q(x), self.heads), k, v).transpose(1, 2).flatten(2))
