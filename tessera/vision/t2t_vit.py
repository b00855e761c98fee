"""T2T-ViT (Yuan et al. 2021, arXiv 2101.11986): the Tokens-to-Token module, then a deep and narrow transformer.

A class token, fixed sines over all positions, pre-norm blocks without biases on queries, keys and values, and a final
norm. Checked against the official code (github.com/yitu-opensource/T2T-ViT, commit 0f63dc9558).

Legend: B pictures, H and W pixels, h x w token grid, C width.
"""

# No `from __future__ import annotations` here: the field checks of huggingface_hub skip annotations that are
# strings.
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig
from transformers import initialization as init

from tessera.errors import UserError
from tessera.layers.drop_path import drop_path_rates
from tessera.layers.positions import PositionTable
from tessera.vision.base import VisionBackbone, VisionOutput, at_least_one, whole_tiles
from tessera.vision.registry import register
from tessera.vision.t2t_blocks import DenseTransition, dense_stack, encoder_block, ghost_block, se_block
from tessera.vision.t2t_tokens import (
    ConvolutionTokens,
    PerformerTokens,
    TokensToToken,
    TransformerTokens,
    cut_widths,
)

SPLITS = ((7, 4, 2), (3, 2, 1), (3, 2, 1))
BLOCKS = {"plain": encoder_block, "se": se_block, "ghost": ghost_block}


@strict
class T2TViTConfig(PreTrainedConfig):
    """T2T-ViT-14 by default.

    Args:
        splits: kernel, stride and padding of each soft split; a single one is the plain cut of a ViT.
        token_layer: what stands after each split but the last, or "convolution": convolutions of the same windows.
        token_width, token_dropout: of the token layers; dropout is the Performer's alone.
        hidden_size: C, in a dense stack its width at the start.
        block: "plain", or one of the architecture study's.
        dense_stages, dense_growth: blocks of each stage and channels that a block adds; of "dense" alone.
        attention_scale: factor on the scores of the blocks; by default head width ** -0.5.
        drop_path: of the last block; linear from 0 in the first.
        initializer_range: spread of new linear weights; 0.02 as published, which leaves narrow models long at chance.
    """

    model_type = "tessera-t2t-vit"

    image_size: int = 224
    num_channels: int = 3
    splits: list[Any] | tuple[Any, ...] = SPLITS
    token_layer: Literal["performer", "transformer", "convolution"] = "performer"
    token_width: int = 64
    token_dropout: float = 0.1
    hidden_size: int = 384
    num_hidden_layers: int = 14
    num_attention_heads: int = 6
    mlp_ratio: float = 3.0
    block: Literal["plain", "se", "ghost", "dense"] = "plain"
    dense_stages: list[int] | tuple[int, ...] = ()
    dense_growth: int = 64
    attention_scale: float | None = None
    drop_path: float = 0.1
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        at_least_one(
            self, "image_size", "num_channels", "token_width", "hidden_size", "num_hidden_layers",
            "num_attention_heads", "dense_growth",
        )  # fmt: skip
        if not self.splits:
            raise UserError("splits is empty; give kernel, stride and padding of each cut, as in ((16, 16, 0),)")
        for kernel, stride, padding in self.splits:
            if not kernel - stride <= 2 * padding < kernel:
                raise UserError(
                    f"windows of {kernel} with stride {stride} and padding {padding} do not give one token for every"
                    f" {stride} pixels; the padding is at least {-(-max(kernel - stride, 0) // 2)} and below"
                    f" {-(-kernel // 2)}"
                )
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"a width of {self.hidden_size} does not divide into {self.num_attention_heads} heads;"
                " change one of them"
            )
        if self.block == "dense" and sum(self.dense_stages) != self.num_hidden_layers:
            raise UserError(
                f"dense_stages {list(self.dense_stages)} are {sum(self.dense_stages)} blocks and num_hidden_layers is"
                f" {self.num_hidden_layers}; make them the same"
            )
        if min(self.dense_stages, default=1) < 1:
            raise UserError(f"dense_stages are {list(self.dense_stages)}; each has at least one block")
        whole_tiles(self.image_size, self.image_size, self.tile)

    @property
    def tile(self) -> int:
        """Pixels along a side that become one token: the product of the strides."""
        tile = 1
        for _, stride, _ in self.splits:
            tile *= stride
        return tile


def _tokens(config: T2TViTConfig) -> nn.Module:
    """From pictures to tokens as the configuration says."""
    sizes = (config.num_channels, config.token_width, config.hidden_size)
    if config.token_layer == "convolution":
        return ConvolutionTokens(config.splits, *sizes)
    performer = partial(PerformerTokens, dropout=config.token_dropout)
    make: Callable[[int, int], nn.Module] = performer if config.token_layer == "performer" else TransformerTokens
    *inner, _ = cut_widths(config.splits, config.num_channels, config.token_width)
    return TokensToToken(config.splits, [make(cut, config.token_width) for cut in inner], *sizes)


def _blocks(config: T2TViTConfig) -> tuple[list[nn.Module], int]:
    """The blocks in order, and the width after them."""
    width, heads, scale = config.hidden_size, config.num_attention_heads, config.attention_scale
    if config.block == "dense":
        stages = list(config.dense_stages)
        return dense_stack(width, heads, config.mlp_ratio, scale, config.drop_path, stages, config.dense_growth)
    make, mlp_width = BLOCKS[config.block], int(width * config.mlp_ratio)
    rates = drop_path_rates(config.drop_path, config.num_hidden_layers)
    return [make(width, heads, mlp_width, scale, rate) for rate in rates], width


class T2TViT(VisionBackbone):
    """Pictures of any size whose sides are multiples of the strides' product (16), which need not be square.

    For another grid than that of `image_size` the table of positions is interpolated (bicubic), as the official code
    carries weights from 224 to 384 pixels.
    """

    config_class = T2TViTConfig
    config: T2TViTConfig

    def __init__(self, config: T2TViTConfig) -> None:
        super().__init__(config)
        self.tokens = _tokens(config)
        # A vector, which no optimiser takes for a matrix: it is not decayed, as published.
        self.class_token = nn.Parameter(torch.zeros(config.hidden_size))
        grid = self.grid_of(config.image_size, config.image_size)
        self.positions = PositionTable(grid, config.hidden_size, extra=1, kind="sine")
        blocks, width = _blocks(config)
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width, eps=1e-5)
        self.post_init()

    @property
    def width(self) -> int:
        """C."""
        return self.norm.normalized_shape[0]

    def grid_of(self, height: int, width: int) -> tuple[int, int]:
        """(H / 16, W / 16) with the published strides.

        Raises:
            UserError: the strides do not divide the picture, with the nearest size that they do.
        """
        return whole_tiles(height, width, self.config.tile)

    def forward(self, pixel_values: Tensor, output_hidden_states: bool = False) -> VisionOutput:
        """[B, channels, H, W] -> tokens [B, h * w, C]; `pooled` is the class token. Hidden states hold the class token
        first."""
        grid = self.grid_of(*pixel_values.shape[-2:])
        tokens = self.tokens(pixel_values)
        x = torch.cat([self.class_token.expand(len(tokens), 1, -1).to(tokens.dtype), tokens], dim=1)
        x = self.positions(x, grid)
        states = []
        for block in self.blocks:
            x = block(x)
            if output_hidden_states and not isinstance(block, DenseTransition):
                states.append(x)
        x = self.norm(x)
        return VisionOutput(
            tokens=x[:, 1:], grid=grid, pooled=x[:, 0], hidden_states=tuple(states) if output_hidden_states else None
        )

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, PerformerTokens):
            module.draw_features()
        elif module is self:
            init.trunc_normal_(self.class_token, std=0.02)
        else:
            super()._init_weights(module)


AutoConfig.register(T2TViTConfig.model_type, T2TViTConfig)
AutoModel.register(T2TViTConfig, T2TViT)

# Width, depth, heads, MLP ratio (tables 2 to 4, and the factories of the official code).
_SIZES = {
    "7": (256, 7, 4, 2.0),
    "10": (256, 10, 4, 2.0),
    "12": (256, 12, 4, 2.0),
    "14": (384, 14, 6, 3.0),
    "19": (448, 19, 7, 3.0),
    "24": (512, 24, 8, 3.0),
}


def _sized(width: int, depth: int, heads: int, ratio: float, **further: Any) -> partial[T2TViTConfig]:
    return partial(
        T2TViTConfig, hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, mlp_ratio=ratio, **further
    )


PUBLISHED = {
    **{f"t2t-vit-{name}": _sized(*size) for name, size in _SIZES.items()},
    **{f"t2t-vit-t-{name}": _sized(*_SIZES[name], token_layer="transformer") for name in ("14", "19", "24")},
    "t2t-vit-14-384": _sized(*_SIZES["14"], image_size=384),
}
ABLATIONS = {
    "t2t-vit-14-resnext": _sized(384, 14, 32, 3.0),
    "t2t-vit-14-wide": _sized(768, 4, 12, 3.0),
    "t2t-vit-dense": _sized(128, 19, 8, 2.0, block="dense", dense_stages=(3, 6, 6, 4)),
    "t2t-vit-14-se": _sized(384, 14, 6, 3.0, block="se"),
    "t2t-vit-16-ghost": _sized(384, 16, 6, 3.0, block="ghost"),
}
# 64 pixels, 8 x 8 tokens.
MINI = _sized(128, 6, 2, 2.0, image_size=64, splits=((3, 2, 1),) * 3, token_width=32, initializer_range=0.1)

for _name, _factory in {**PUBLISHED, **ABLATIONS, "t2t-vit-mini": MINI}.items():
    register(_name, _factory)
