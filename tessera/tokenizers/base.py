"""What every image tokenizer gives: a picture as a run of tokens, and a picture, or what paints one, back from them.

A tokenizer has two methods. `encode` turns what it reads, pictures or frozen features of them, into tokens; `decode`
turns tokens into pictures, or into the conditions of a painter. VL-GPT's tokenizer gives its continuous, causally
ordered embeddings bare; one with a codebook gives `Tokens`, and decodes ids as well as embeddings.

Legend: B pictures, N tokens, h x w grid, d width of an embedding.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from torch import Tensor


class Tokens(NamedTuple):
    """B pictures as N tokens each.

    Attributes:
        ids: places in the codebook, int64 [B, N].
        embeds: [B, N, d], what the codes say: the decoder reads the same from ids and from these.
        grid: (h, w) with h * w = N, row by row; None where tokens stand in no grid.
    """

    ids: Tensor
    embeds: Tensor
    grid: tuple[int, int] | None


class ImageTokenizer(Protocol):
    """See the head of this file."""

    def encode(self, inputs: Tensor, /) -> Tensor | Tokens:
        """Pictures [B, channels, H, W] or features [B, S, C] -> embeddings [B, N, d], or with a codebook `Tokens`."""
        ...

    def decode(self, tokens: Tensor, /) -> Any:
        """Embeddings float [B, N, d], or with a codebook ids int [B, N], -> pictures or conditions."""
        ...
