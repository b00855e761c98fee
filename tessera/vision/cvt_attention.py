"""Attention whose queries, keys and values come out of convolutions over the token grid (Wu et al. 2021, section 3.2).

Legend: B pictures, C width, h x w grid of the tokens, h' x w' of keys and values; T tokens: h * w, and one more where
there is a class token, which then stands first.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from transformers import PreTrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tessera.layers.multihead import split_heads

Projection = Literal["convolution", "average", "linear"]


def as_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """[B, h * w, C] -> [B, C, h, w], the same memory read as a channels-last picture."""
    return tokens.unflatten(1, grid).permute(0, 3, 1, 2)


def as_tokens(picture: Tensor) -> Tensor:
    """[B, C, h, w] -> [B, h * w, C]; the same memory where the picture is channels-last."""
    return picture.permute(0, 2, 3, 1).flatten(1, 2)


def laid_out(picture: Tensor, config: PreTrainedConfig) -> Tensor:
    """A picture [B, C, h, w] as the convolutions read it fastest, channels-last.

    Transformers' code meets the same layout, but for a single picture, whose strides its views leave as those of NCHW;
    there, sums run in another order. "eager" attention promises equal bits and follows it.
    """
    if config._attn_implementation == "eager" and len(picture) == 1:
        return picture.contiguous()
    return picture.contiguous(memory_format=torch.channels_last)


class ConvolutionalProjection(nn.Module):
    """Depthwise 3 x 3 convolution and batch norm, [B, C, h, w] -> [B, C, h', w'] with h' = ceil(h / stride)."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride, padding=1, groups=width, bias=False)
        self.conv.no_muon = True  # type: ignore[assignment]  # a filter of each channel, no matrix between channels
        self.norm: nn.Module = nn.BatchNorm2d(width)

    def forward(self, picture: Tensor) -> Tensor:
        return self.norm(self.conv(picture))

    def fold(self) -> None:
        """Make the norm with its running statistics a factor and a bias of the convolution, for good."""
        if isinstance(self.norm, nn.BatchNorm2d):
            self.conv, self.norm = fuse_conv_bn_eval(self.conv.eval(), self.norm.eval()), nn.Identity()


class ConvAttention(nn.Module):
    """Multi-head attention over a token grid, [B, T, C] -> [B, T, C].

    The class token skips the convolutions, and is in front again at the linear projections.

    Args:
        scale: factor on the scores.
        stride: of keys and values; 2 leaves a quarter of them.
        projection: before the linear projections: "convolution" for all three; "average" pools keys and values;
            "linear" has nothing there, and as many keys as tokens.
        config: whose attention implementation is run: "eager" multiplies and lays out as transformers' CvtModel, so
            that outputs are equal bit for bit.
    """

    is_causal = False  # transformers' attention functions ask for it

    def __init__(
        self, width: int, heads: int, *, scale: float, stride: int, projection: Projection, config: PreTrainedConfig
    ) -> None:
        super().__init__()
        self.heads, self.scale, self.config = heads, scale, config
        self.query_map: nn.Module = nn.Identity()
        self.key_map: nn.Module = nn.Identity()
        self.value_map: nn.Module = nn.Identity()
        if projection == "convolution":
            self.query_map = ConvolutionalProjection(width, 1)
            self.key_map, self.value_map = (ConvolutionalProjection(width, stride) for _ in range(2))
        elif projection == "average":
            self.key_map, self.value_map = (nn.AvgPool2d(3, stride, 1, ceil_mode=True) for _ in range(2))
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        extra = tokens.shape[1] - grid[0] * grid[1]
        # Behind a class token the grid is a slice: copied once here, not by each convolution.
        picture = laid_out(as_map(tokens[:, extra:], grid), self.config)
        q = self.query(self._before(self.query_map, tokens, picture, extra))
        k = self.key(self._before(self.key_map, tokens, picture, extra))
        v = self.value(self._before(self.value_map, tokens, picture, extra))
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, _in_order)
        mixed, _ = attend(self, *(split_heads(x, self.heads) for x in (q, k, v)), None, scaling=self.scale)
        return self.out(mixed.flatten(2))

    def _before(self, projection: nn.Module, tokens: Tensor, picture: Tensor, extra: int) -> Tensor:
        """The tokens that a linear projection reads, [B, T', C]."""
        if isinstance(projection, nn.Identity):
            return tokens
        found = as_tokens(projection(picture))
        return torch.cat([tokens[:, :extra], found], dim=1) if extra else found


def _in_order(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: None, *, scaling: float
) -> tuple[Tensor, Tensor]:
    """The attention function "eager"."""
    weights = (query @ key.mT * scaling).softmax(-1)
    return (weights @ value).transpose(1, 2).contiguous(), weights
