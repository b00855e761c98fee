"""Blocks of T2T-ViT's architecture study: ideas of convolutional networks carried over to the plain block.

Legend: B batch, L positions, W width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tessera.errors import UserError
from tessera.layers.attention import attend
from tessera.layers.drop_path import drop_path_rates
from tessera.layers.encoder import EncoderBlock
from tessera.layers.multihead import SelfAttention, split_heads

EPS = 1e-5  # of every norm, PyTorch's default
REDUCTION = 16  # of the squeezed width


def encoder_block(width: int, heads: int, mlp_width: int, scale: float | None, drop_path: float) -> EncoderBlock:
    """The plain pre-norm block, without biases on queries, keys and values."""
    return EncoderBlock(width, heads, mlp_width, qkv_bias=False, scale=scale, drop_path=drop_path, eps=EPS)


class SqueezeExcite(nn.Module):
    """Gates each channel by what the mean of all positions says, [B, L, W] -> [B, L, W] (Hu et al. 2018)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(width, width // REDUCTION, bias=False)
        self.excite = nn.Linear(width // REDUCTION, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.excite(F.relu(self.squeeze(x.mean(1, keepdim=True)))).sigmoid()


class GatedAttention(SelfAttention):
    """Self-attention with squeeze-and-excitation on what it gives."""

    def __init__(self, width: int, heads: int, scale: float | None) -> None:
        super().__init__(width, heads, qkv_bias=False, scale=scale)
        self.gate = SqueezeExcite(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(super().forward(x))


def se_block(width: int, heads: int, mlp_width: int, scale: float | None, drop_path: float) -> EncoderBlock:
    """The block with squeeze-and-excitation."""
    block = encoder_block(width, heads, mlp_width, scale, drop_path)
    block.attn = GatedAttention(width, heads, scale)
    return block


class Cheap(nn.Module):
    """A factor for each channel of x [..., W], as a 1 x 1 depthwise convolution has."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width).uniform_(-1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class GhostAttention(nn.Module):
    """Self-attention [B, L, W] -> [B, L, W] that makes half of each query, key and value by a matrix and the other half
    by a factor on each channel of the first (Han et al. 2020)."""

    def __init__(self, width: int, heads: int, scale: float | None) -> None:
        super().__init__()
        self.heads, self.scale = heads, scale
        self.qkv = nn.ModuleDict({name: nn.Linear(width, width // 2, bias=False) for name in "qkv"})
        self.cheap = nn.ModuleDict({name: Cheap(width // 2) for name in "qkv"})
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        halves = {name: linear(x) for name, linear in self.qkv.items()}
        whole = [torch.cat([half, self.cheap[name](half)], -1) for name, half in halves.items()]
        q, k, v = (split_heads(one, self.heads) for one in whole)
        return self.out(attend(q, k, v, scale=self.scale).transpose(1, 2).flatten(2))


class GhostMlp(nn.Module):
    """Linear, GELU, Linear with three times the width between, two thirds of it made by factors on the first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, width)
        self.cheap = nn.ModuleList(Cheap(width) for _ in range(2))
        self.fc2 = nn.Linear(3 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        first = F.gelu(self.fc1(x))
        return self.fc2(torch.cat([first, *(F.gelu(cheap(first)) for cheap in self.cheap)], -1))


def ghost_block(width: int, heads: int, mlp_width: int, scale: float | None, drop_path: float) -> EncoderBlock:
    """The block with most of its features made by factors.

    Raises:
        UserError: the MLP is not three times as wide.
    """
    if mlp_width != 3 * width:
        raise UserError(f"a ghost block has an MLP of 3 x {width} = {3 * width}, not {mlp_width}; set mlp_ratio to 3")
    block = encoder_block(width, heads, mlp_width, scale, drop_path)
    block.attn = GhostAttention(width, heads, scale)  # type: ignore[assignment]
    block.mlp = GhostMlp(width)  # type: ignore[assignment]
    return block


class DenseBlock(EncoderBlock):
    """A block whose result, projected to `growth` channels, joins its input: [B, L, W] -> [B, L, W + growth]."""

    def __init__(
        self, width: int, heads: int, mlp_width: int, scale: float | None, drop_path: float, growth: int
    ) -> None:
        super().__init__(width, heads, mlp_width, qkv_bias=False, scale=scale, drop_path=drop_path, eps=EPS)
        self.grow = nn.Linear(width, growth)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.grow(super().forward(x))], -1)


class DenseTransition(nn.Module):
    """Halves the width between stages: [B, L, W] -> [B, L, W / 2]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width // 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.linear(x))


def dense_stack(
    width: int, heads: int, mlp_ratio: float, scale: float | None, drop_path: float, stages: list[int], growth: int
) -> tuple[list[nn.Module], int]:
    """The blocks of all stages with the transitions between them, and the width at the end."""
    # As the official code has it: the rates of a stack of 12, of which each stage takes one.
    rates = drop_path_rates(drop_path, 12)
    modules: list[nn.Module] = []
    for stage, depth in enumerate(stages):
        for _ in range(depth):
            modules.append(DenseBlock(width, heads, int(width * mlp_ratio), scale, rates[stage], growth))
            width += growth
        if stage < len(stages) - 1:
            modules.append(DenseTransition(width))
            width //= 2
    return modules, width
