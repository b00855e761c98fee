"""VL-GPT's image tokenizer and detokenizer: a picture as N causally ordered vectors, and back to conditions.

Legend: B pictures, S patch features of width C, N embeddings of width d, W inner width,
Q image-condition tokens of width Dv, T text-condition tokens of width Dt.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from tessera.layers.decoder import DecoderStack


class StackSize(NamedTuple):
    """The inner size of one decoder stack."""

    width: int
    depth: int
    heads: int
    mlp_width: int


class Conditions(NamedTuple):
    """What the frozen pixel decoder is told: image [B, Q, Dv] (z_v) and text [B, T, Dt] (z_t)."""

    image: Tensor
    text: Tensor


def _queries(count: int, width: int, std: float) -> nn.Parameter:
    return nn.Parameter(torch.empty(count, width).normal_(std=std))


class CausalImageTokenizer(nn.Module):
    """E_v of VL-GPT: learned queries read the patch features through a causal decoder stack.

    Embedding n depends on queries 0..n only, so the N embeddings can be predicted one after another. At
    published size (N 32, W 1024, 12 blocks, d 4096) it holds 205,793,280 parameters.

    Args:
        feature_width: C.
        num_embeddings: N.
        embed_width: d, the width of the language model: the embeddings enter it as they are.
        query_std: standard deviation of the queries before training.
    """

    def __init__(
        self,
        size: StackSize,
        *,
        feature_width: int,
        num_embeddings: int,
        embed_width: int,
        query_std: float = 0.02,
    ) -> None:
        super().__init__()
        self.queries = _queries(num_embeddings, size.width, query_std)
        self.decoder = DecoderStack(*size, memory_width=feature_width)
        self.out = nn.Linear(size.width, embed_width)

    def forward(self, features: Tensor) -> Tensor:
        """Patch features [B, S, C] -> x_v [B, N, d]."""
        queries = self.queries.expand(features.shape[0], -1, -1)
        return self.out(self.decoder(queries, features))


class ImageDetokenizer(nn.Module):
    """D_v of VL-GPT: estimates both conditions of a frozen diffusion model from x_v.

    One decoder stack over Q + T learned queries, image bank first, and one linear head for each bank. At
    published size (16 x 768 and 77 x 768) it holds 207,427,072 parameters.

    Args:
        embed_width: d; projected to W before the cross-attention.
        image: (Q, Dv).
        text: (T, Dt).
        query_std: standard deviation of the queries before training.
    """

    def __init__(
        self,
        size: StackSize,
        *,
        embed_width: int,
        image: tuple[int, int],
        text: tuple[int, int],
        query_std: float = 0.02,
    ) -> None:
        super().__init__()
        self.banks = [image[0], text[0]]
        self.queries = _queries(sum(self.banks), size.width, query_std)
        self.inp = nn.Linear(embed_width, size.width)
        self.decoder = DecoderStack(*size)
        self.image_head = nn.Linear(size.width, image[1])
        self.text_head = nn.Linear(size.width, text[1])

    def forward(self, embeds: Tensor) -> Conditions:
        """x_v [B, N, d] -> z_v [B, Q, Dv] and z_t [B, T, Dt]."""
        queries = self.queries.expand(embeds.shape[0], -1, -1)
        image, text = self.decoder(queries, self.inp(embeds)).split(self.banks, dim=1)
        return Conditions(self.image_head(image), self.text_head(text))
