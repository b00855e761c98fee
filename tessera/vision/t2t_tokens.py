"""The Tokens-to-Token module (Yuan et al. 2021): a picture is cut into overlapping windows, a small attention layer
mixes them, and its result, laid out as a picture again, is cut anew, so that neighbouring tokens become one.

Legend: B pictures, N tokens on a grid h x w, d width of a cut token, t token width, m random features, C final width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.utils.generic import maybe_autocast

from tessera.layers.attention import attend
from tessera.layers.mlp import Mlp

Split = Sequence[int]  # kernel, stride, padding
LEAST = -40.0  # exponents that far below the greatest count no more; the product of two is a normal float32 still


class PerformerTokens(nn.Module):
    """Linear attention by positive random features (Choromanski et al. 2021), [B, N, d] -> [B, N, t].

    phi(x) = exp(W x - |x|^2 / 2) / sqrt(m) estimates the kernel exp(q k), without a scale on the scores; W stays as it
    is drawn: orthogonal rows of length sqrt(m). The skip connection carries the values, since d is not t.

    Args:
        features: m, by default t / 2.
        dropout: after the projection and after the MLP; 0.1 is fixed in the official code, where all others are 0.
    """

    features: Tensor

    def __init__(self, in_width: int, width: int, features: int | None = None, dropout: float = 0.1) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(in_width)
        self.kqv = nn.Linear(in_width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, width)
        self.dropout = nn.Dropout(dropout)
        # A buffer: a stage that trains everything leaves it alone.
        self.register_buffer("features", torch.empty(features or width // 2, width))
        self.draw_features()

    def draw_features(self) -> None:
        """New random features W [m, t]."""
        init.orthogonal_(self.features, gain=math.sqrt(len(self.features)))

    def exponents(self, x: Tensor) -> Tensor:
        """W x - |x|^2 / 2 of x [B, N, t], float32 [B, N, m]; bfloat16 would blur them."""
        x = x.float()
        return x @ self.features.float().T - x.square().sum(-1, keepdim=True) / 2

    def attention(self, k: Tensor, q: Tensor, v: Tensor) -> Tensor:
        """Values [B, N, t] averaged with weights phi(q) phi(k) / (their sum + 1e-8), in float32.

        Exponents are taken less their greatest, of each query and of all keys, and the 1e-8 with them. That changes
        nothing, but keeps the sums from overflow, to which trained layers come close, and from denormal numbers, which
        a processor takes a hundred times as long for.
        """
        with maybe_autocast(v.device.type, enabled=False):
            keys, queries = self.exponents(k), self.exponents(q)
            top_key, top_query = keys.detach().amax((1, 2), keepdim=True), queries.detach().amax(2, keepdim=True)
            keys = (keys - top_key).clamp(min=LEAST).exp()
            queries = (queries - top_query).clamp(min=LEAST).exp()
            total = queries @ keys.sum(1)[:, :, None]
            total = total + 1e-8 * len(self.features) * (-top_key - top_query).clamp(max=-2 * LEAST).exp()
            return (queries @ (keys.transpose(1, 2) @ v.float()) / total).to(v.dtype)

    def forward(self, x: Tensor) -> Tensor:
        k, q, v = self.kqv(self.norm1(x)).chunk(3, dim=-1)  # in this order
        y = v + self.dropout(self.proj(self.attention(k, q, v)))
        return y + self.dropout(self.mlp(self.norm2(y)))


class TransformerTokens(nn.Module):
    """Softmax attention of one head, [B, N, d] -> [B, N, t]; the skip connection carries the values.

    The scores are scaled by d ** -0.5, with the width before the projection, as the official code has it.
    """

    def __init__(self, in_width: int, width: int) -> None:
        super().__init__()
        self.scale = in_width**-0.5
        self.norm1 = nn.LayerNorm(in_width)
        self.qkv = nn.Linear(in_width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x))[:, None].chunk(3, dim=-1)
        y = v[:, 0] + self.proj(attend(q, k, v, scale=self.scale)[:, 0])
        return y + self.mlp(self.norm2(y))


def unfold(picture: Tensor, split: Split) -> Tensor:
    """A soft split: [B, c, H, W] -> [B, N, c * kernel * kernel], channel by channel inside a token."""
    kernel, stride, padding = split
    return F.unfold(picture, kernel, padding=padding, stride=stride).transpose(1, 2)


def fold_grid(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Tokens [B, h * w, t] as a picture [B, t, h, w]."""
    return tokens.transpose(1, 2).unflatten(2, grid)


class TokensToToken(nn.Module):
    """Soft splits with a token layer after each but the last, then a projection: [B, c, H, W] -> [B, N, C].

    A single split is the plain cut into patches of a ViT.

    Args:
        layers: one for each split but the last, [B, N, d] -> [B, N, t] with d = channels * kernel ** 2.
    """

    def __init__(
        self, splits: Sequence[Split], layers: Sequence[nn.Module], channels: int, token_width: int, width: int
    ) -> None:
        super().__init__()
        self.splits = [tuple(split) for split in splits]
        self.layers = nn.ModuleList(layers)
        self.project = nn.Linear(cut_widths(splits, channels, token_width)[-1], width)

    def forward(self, picture: Tensor) -> Tensor:
        for split, layer in zip(self.splits, self.layers, strict=False):
            grid = split_grid(split, *picture.shape[-2:])
            picture = fold_grid(layer(unfold(picture, split)), grid)
        return self.project(unfold(picture, self.splits[-1]))


class ConvolutionTokens(nn.Module):
    """The ablation: a convolution of the same window in place of each split and its token layer, [B, c, H, W] ->
    [B, N, C]. The official code names the three convolutions and leaves open what stands between them; here a GELU
    does, so that the baseline is no mere linear map."""

    def __init__(self, splits: Sequence[Split], channels: int, token_width: int, width: int) -> None:
        super().__init__()
        widths = [channels, *[token_width] * (len(splits) - 1), width]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, kernel, stride, padding)
            for before, after, (kernel, stride, padding) in zip(widths, widths[1:], splits, strict=False)
        )

    def forward(self, picture: Tensor) -> Tensor:
        *inner, last = self.convolutions
        for convolution in inner:
            picture = F.gelu(convolution(picture))
        return last(picture).flatten(2).transpose(1, 2)


def cut_widths(splits: Sequence[Split], channels: int, token_width: int) -> list[int]:
    """d of each split: the values in one of its windows."""
    return [(token_width if number else channels) * split[0] ** 2 for number, split in enumerate(splits)]


def split_grid(split: Split, height: int, width: int) -> tuple[int, int]:
    """The grid (h, w) of windows of one split."""
    kernel, stride, padding = split
    return (height + 2 * padding - kernel) // stride + 1, (width + 2 * padding - kernel) // stride + 1
