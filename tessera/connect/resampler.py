"""The perceiver resampler (Alayrac et al. 2022, arXiv 2204.14198): a few learned latents read many tokens.

Legend: M pictures, S tokens, N latents, C width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tessera.layers.attention import attend
from tessera.layers.mlp import Mlp
from tessera.layers.multihead import split_heads


class ResamplerLayer(nn.Module):
    """latents + attention(latents; tokens and latents), latents + mlp(norm latents). No linear layer has a bias."""

    def __init__(self, width: int, heads: int, head_width: int, mlp_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.token_norm, self.latent_norm, self.mlp_norm = (nn.LayerNorm(width) for _ in range(3))
        self.q = nn.Linear(width, heads * head_width, bias=False)
        self.kv = nn.Linear(width, 2 * heads * head_width, bias=False)
        self.out = nn.Linear(heads * head_width, width, bias=False)
        self.mlp = Mlp(width, mlp_width, bias=False)

    def forward(self, latents: Tensor, tokens: Tensor) -> Tensor:
        """Latents [M, N, C] that read tokens [M, S, C] and themselves -> [M, N, C]."""
        asking = self.latent_norm(latents)
        keys, values = self.kv(torch.cat([self.token_norm(tokens), asking], dim=1)).chunk(2, dim=-1)
        q, k, v = (split_heads(one, self.heads) for one in (self.q(asking), keys, values))
        latents = latents + self.out(attend(q, k, v).transpose(1, 2).flatten(2))
        return latents + self.mlp(self.mlp_norm(latents))


class PerceiverResampler(nn.Module):
    """Tokens of a picture through N latents: [M, S, C] -> [M, N, C]. `media`, which the model that owns it
    initialises, is added to every token (that of the first medium of the published layer).

    Args:
        head_width: of each of the `heads`; together they need not be C.
    """

    def __init__(self, width: int, latents: int, depth: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.latents = nn.Embedding(latents, width)
        self.media = nn.Parameter(torch.zeros(width))
        self.layers = nn.ModuleList(ResamplerLayer(width, heads, head_width, 4 * width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.media
        latents = self.latents.weight.expand(len(tokens), -1, -1)
        for layer in self.layers:
            latents = layer(latents, tokens)
        return self.norm(latents)
