"""The pre-norm blocks that language models of the GPT kind stack: causal, with a cache of keys and values, or under a
mask of the caller's.

Legend: B rows, L new positions, T positions of the cache, W width, H heads, D head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tessera.layers.attention import attend
from tessera.layers.encoder import EncoderBlock


class KeyValues:
    """Keys and values [blocks, B, H, T, D] of all positions so far, allocated once.

    Attributes:
        length: positions that are filled; set by `advance` when all blocks have read them.
    """

    def __init__(self, blocks: int, rows: int, heads: int, capacity: int, like: Tensor) -> None:
        """`like` [..., W] gives head width W / heads, type and device."""
        shape = (blocks, rows, heads, capacity, like.shape[-1] // heads)
        self.keys = torch.empty(shape, dtype=like.dtype, device=like.device)
        self.values = torch.empty_like(self.keys)
        self.length = 0

    def extend(self, block: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write keys and values [B, H, L, D] of new positions of a block; gives those of all, [B, H, length + L, D].

        Raises:
            ValueError: there is no room.
        """
        end = self.length + keys.shape[2]
        if end > self.keys.shape[3]:
            raise ValueError(f"the cache holds {self.keys.shape[3]} positions, {end} are needed")
        self.keys[block, :, :, self.length : end] = keys
        self.values[block, :, :, self.length : end] = values
        return self.keys[block, :, :, :end], self.values[block, :, :, :end]

    def advance(self, number: int) -> None:
        """Count `number` positions as read."""
        self.length += number


class CausalBlock(EncoderBlock):
    """An encoder block whose position i reads positions 0..i, [B, L, W] -> [B, L, W] (Radford et al. 2019).

    Args:
        dropout: share of what both branches and the activation in between give that is dropped in training.
    """

    def __init__(self, width: int, heads: int, mlp_width: int, *, dropout: float = 0.0, eps: float = 1e-5) -> None:
        super().__init__(width, heads, mlp_width, eps=eps)
        self.dropout = dropout

    def forward(self, x: Tensor, cache: KeyValues | None = None, block: int = 0) -> Tensor:
        """With a cache, x holds the positions after those that the cache has; `block` is this block's place in it."""
        q, k, v = self.attn.project(self.norm1(x))
        if cache is not None:
            k, v = cache.extend(block, k, v)
        new, all_ = q.shape[2], k.shape[2]
        mask = None
        if 1 < new < all_:
            mask = torch.ones(new, all_, dtype=torch.bool, device=x.device).tril(all_ - new)
        read = attend(q, k, v, mask=mask, causal=new == all_)
        x = x + self._drop(self.attn.out(read.transpose(1, 2).flatten(2)))
        inner = self._drop(self.mlp.activation(self.mlp.fc1(self.norm2(x))))
        return x + self._drop(self.mlp.fc2(inner))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class MaskedBlock(EncoderBlock):
    """An encoder block whose positions read what a mask lets them read, [B, L, W] -> [B, L, W]. Under a causal mask it
    is the block of GPT-2 (Radford et al. 2019), dropout included.

    Args:
        dropout: share of the attention weights and of what both branches give that is dropped in training.
    """

    def __init__(
        self, width: int, heads: int, mlp_width: int, *, activation: str = "gelu", dropout: float = 0.0,
        eps: float = 1e-5,
    ) -> None:  # fmt: skip
        super().__init__(width, heads, mlp_width, activation=activation, eps=eps)
        self.dropout = dropout

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        """`mask` as `attend` takes it, broadcastable to [B, H, L, L]."""
        share = self.dropout if self.training else 0.0
        x = x + F.dropout(self.attn.read(*self.attn.project(self.norm1(x)), mask, share), share)
        return x + F.dropout(self.mlp(self.norm2(x)), share)
