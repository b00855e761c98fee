"""CvT: Introducing Convolutions to Vision Transformers (Wu et al. 2021, 2103.15808).

Three stages of transformer blocks. Tokens of a stage come out of an overlapping, strided convolution; queries, keys and
values out of depthwise ones. Convolutions know where they are, so that there are no position embeddings and pictures
may be of any size.

Legend: B pictures, C width of a stage, h x w its grid, T tokens (h * w, and the class token in the last stage).
"""

# No `from __future__ import annotations` here: the field checks of huggingface_hub skip annotations that are strings.
import copy
from functools import partial
from typing import Any, Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from tessera.errors import UserError
from tessera.layers.attention import NAME as ATTENTION
from tessera.layers.drop_path import DropPath, drop_path_rates
from tessera.layers.mlp import Mlp
from tessera.layers.positions import PositionTable
from tessera.vision.base import VisionBackbone, VisionOutput, at_least_one
from tessera.vision.cvt_attention import ConvAttention, ConvolutionalProjection, Projection, as_map, as_tokens, laid_out
from tessera.vision.registry import register


@strict
class CvTConfig(PreTrainedConfig):
    """CvT-13 by default; one number a stage wherever there are several.

    Args:
        image_size: that position tables are made for; without them any size will do.
        widths, heads, depths: C, attention heads and blocks.
        kernels, strides, paddings: of the convolution that makes the tokens of a stage.
        key_stride: of the convolutions for keys and values.
        projection: before the linear projections of attention, see `ConvAttention`.
        attention_scale: "width" multiplies scores by C ** -0.5, as the official code does; "head" by that of a head.
        activation: of the MLPs: quick_gelu as the official code, gelu as transformers' CvtModel.
        drop_path: highest rate, which the last block of a stage has; the first has 0.
        class_token: one in the last stage is what classifiers read; without it, the mean of the tokens.
        initializer_range: spread of new linear weights; 0.02 as published, which leaves narrow models long at chance.
        position_stages: stages whose tokens get a learned position table; the paper's ablation, none by default.
    """

    model_type = "tessera-cvt"

    image_size: int = 224
    num_channels: int = 3
    widths: list[int] | tuple[int, ...] = (64, 192, 384)
    heads: list[int] | tuple[int, ...] = (1, 3, 6)
    depths: list[int] | tuple[int, ...] = (1, 2, 10)
    kernels: list[int] | tuple[int, ...] = (7, 3, 3)
    strides: list[int] | tuple[int, ...] = (4, 2, 2)
    paddings: list[int] | tuple[int, ...] = (2, 1, 1)
    mlp_ratio: float = 4.0
    key_stride: int = 2
    projection: Projection = "convolution"
    attention_scale: Literal["width", "head"] = "width"
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    drop_path: list[float] | tuple[float, ...] = (0.0, 0.0, 0.1)
    class_token: bool = True
    initializer_range: float = 0.02
    position_stages: list[int] | tuple[int, ...] = ()

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("attn_implementation", ATTENTION)
        super().__post_init__(**kwargs)
        at_least_one(self, "image_size", "num_channels", "key_stride")
        stages = len(self.widths)
        for name in ("heads", "depths", "kernels", "strides", "paddings", "drop_path"):
            if len(getattr(self, name)) != stages:
                raise UserError(f"{name} is {getattr(self, name)}; it needs one for each of the {stages} widths")
        for width, heads in zip(self.widths, self.heads, strict=True):
            if heads < 1 or width < 1 or width % heads:
                raise UserError(f"a width of {width} does not divide into {heads} heads; change one of them")
        if not all(0 <= stage < stages for stage in self.position_stages):
            raise UserError(f"position_stages is {self.position_stages}; the stages are 0 to {stages - 1}")

    def grids(self, height: int, width: int) -> list[tuple[int, int]]:
        """The token grid of each stage for a picture of height x width pixels; 0 where nothing is left."""
        found, grid = [], (height, width)
        for kernel, stride, padding in zip(self.kernels, self.strides, self.paddings, strict=True):
            rows, columns = (max(0, (side + 2 * padding - kernel) // stride + 1) for side in grid)
            found.append(grid := (rows, columns))
        return found


class Block(GradientCheckpointingLayer):
    """x + attention(norm x), x + mlp(norm x), [B, T, C] -> [B, T, C]."""

    def __init__(self, config: CvTConfig, stage: int, drop_path: float) -> None:
        super().__init__()
        width, heads = config.widths[stage], config.heads[stage]
        scaled = width if config.attention_scale == "width" else width // heads
        self.norm1 = nn.LayerNorm(width)
        self.attn = ConvAttention(
            width, heads, scale=scaled**-0.5, stride=config.key_stride, projection=config.projection, config=config
        )
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, int(width * config.mlp_ratio), config.activation)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x), grid))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Stage(nn.Module):
    """A picture or the map of the stage before, [B, C', H, W], as tokens [B, T, C], and the blocks that read them."""

    def __init__(self, config: CvTConfig, stage: int) -> None:
        super().__init__()
        width, last = config.widths[stage], stage == len(config.widths) - 1
        channels = config.widths[stage - 1] if stage else config.num_channels
        self.config = config
        self.conv = nn.Conv2d(channels, width, config.kernels[stage], config.strides[stage], config.paddings[stage])
        self.norm = nn.LayerNorm(width)
        grid = config.grids(config.image_size, config.image_size)[stage]
        placed = stage in config.position_stages
        self.positions = PositionTable(grid, width, extra=0, kind="learned") if placed else None
        # One dimension, so that it is not decayed, as in the official recipe.
        self.class_token = nn.Parameter(torch.zeros(width)) if config.class_token and last else None
        rates = drop_path_rates(config.drop_path[stage], config.depths[stage])
        self.blocks = nn.ModuleList(Block(config, stage, rate) for rate in rates)

    def forward(self, picture: Tensor, states: list[Tensor] | None = None) -> tuple[Tensor, tuple[int, int]]:
        """The tokens [B, T, C] after the last block, and (h, w); `states` gets those after each block."""
        tokens, grid = self.embed(picture)
        for block in self.blocks:
            tokens = block(tokens, grid)
            if states is not None:
                states.append(tokens)
        return tokens, grid

    def embed(self, picture: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Tokens before the first block, and their grid (h, w)."""
        picture = self.conv(laid_out(picture, self.config))
        grid = (picture.shape[2], picture.shape[3])
        tokens = self.norm(as_tokens(picture))
        if self.positions is not None:
            tokens = self.positions(tokens, grid)
        if self.class_token is not None:
            tokens = torch.cat([self.class_token.expand(len(tokens), 1, -1), tokens], dim=1)
        return tokens, grid


class CvT(VisionBackbone):
    """The convolutional vision transformer. `pooled` is the class token, after the norm as the tokens are."""

    config: CvTConfig
    config_class = CvTConfig
    _no_split_modules = ["Block"]
    _supports_sdpa = True

    def __init__(self, config: CvTConfig) -> None:
        super().__init__(config)
        self.stages = nn.ModuleList(Stage(config, stage) for stage in range(len(config.widths)))
        self.norm = nn.LayerNorm(config.widths[-1])
        self.post_init()

    @property
    def width(self) -> int:
        """C of the last stage."""
        return self.config.widths[-1]

    def grid_of(self, height: int, width: int) -> tuple[int, int]:
        """The grid of the last stage.

        Raises:
            UserError: the picture is too small for the first convolution, with the least side.
        """
        grid = self.config.grids(height, width)[-1]
        if min(grid) < 1:
            least = next(side for side in range(1, 1 << 16) if min(self.config.grids(side, side)[-1]) > 0)
            raise UserError(
                f"a picture of {height} x {width} pixels is too small for the strides of this CvT;"
                f" any height and width of {least} or more work"
            )
        return grid

    def forward(self, pixel_values: Tensor, output_hidden_states: bool = False) -> VisionOutput:
        """[B, channels, H, W] of any size -> tokens of the last stage; see `VisionOutput`."""
        grid = self.grid_of(*pixel_values.shape[-2:])
        picture = pixel_values.to(self.norm.weight.dtype)
        states: list[Tensor] | None = [] if output_hidden_states else None
        for stage in self.stages:
            tokens, grid = stage(picture, states)
            extra = tokens.shape[1] - grid[0] * grid[1]
            picture = as_map(tokens[:, extra:], grid)
        tokens = self.norm(tokens)
        pooled = tokens[:, 0] if extra else tokens.mean(1)
        return VisionOutput(tokens[:, extra:], grid, pooled, None if states is None else tuple(states))

    def folded(self) -> "CvT":
        """A copy for inference, every batch norm a part of its convolution; neither to be trained nor saved."""
        folded = copy.deepcopy(self).eval().requires_grad_(False)
        for module in folded.modules():
            if isinstance(module, ConvolutionalProjection):
                module.fold()
        return folded

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        bare = module.class_token if isinstance(module, Stage) else getattr(module, "table", None)
        if bare is not None:
            init.trunc_normal_(bare, std=0.02)


VARIANTS: dict[str, dict[str, Any]] = {
    "cvt-13": {},
    "cvt-21": {"depths": (1, 4, 16)},
    "cvt-w24": {
        "widths": (192, 768, 1024), "heads": (3, 12, 16), "depths": (2, 2, 20), "drop_path": (0.0, 0.0, 0.3),
    },
    "cvt-mini": {  # 64 tokens in the last stage, 256 before
        "image_size": 32, "widths": (48, 128), "heads": (1, 2), "depths": (1, 4), "kernels": (3, 3), "strides": (2, 2),
        "paddings": (1, 1), "drop_path": (0.0, 0.0), "activation": "gelu", "initializer_range": 0.1,
    },
}  # fmt: skip

AutoConfig.register(CvTConfig.model_type, CvTConfig)
AutoModel.register(CvTConfig, CvT)
for _name, _changes in VARIANTS.items():
    register(_name, partial(CvTConfig, **_changes))
