"""The plain vision transformer (Dosovitskiy et al. 2021, arXiv 2010.11929): patches cut once, a class token, pre-norm
blocks. The baseline of every other backbone.

Legend: B pictures, h x w grid of patches, N = h * w, C width.
"""

# No `from __future__ import annotations` here: the field checks of huggingface_hub skip annotations that are strings.
from functools import partial
from typing import Any, Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig
from transformers import initialization as init

from tessera.errors import UserError
from tessera.layers.drop_path import drop_path_rates
from tessera.layers.encoder import EncoderBlock
from tessera.layers.positions import PositionTable
from tessera.vision.base import VisionBackbone, VisionOutput, at_least_one, whole_tiles
from tessera.vision.registry import register


@strict
class PlainViTConfig(PreTrainedConfig):
    """The defaults are ViT-B/16.

    Args:
        image_size: pixels a side of the pictures that the position table is made for.
        positions: "learned" as published; "sine", a fixed table; or "none", for ablations.
        drop_path: of the last block; it rises linearly from 0 at the first.
        initializer_range: spread of new linear weights; 0.02 as published, which leaves narrow models long at chance.
    """

    model_type = "tessera-vit"

    image_size: int = 224
    num_channels: int = 3
    patch_size: int = 16
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    mlp_ratio: float = 4.0
    activation: str = "gelu"
    qkv_bias: bool = True
    positions: Literal["learned", "sine", "none"] = "learned"
    drop_path: float = 0.0
    layer_norm_eps: float = 1e-6
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        at_least_one(
            self, "image_size", "num_channels", "patch_size", "hidden_size", "num_hidden_layers", "num_attention_heads"
        )
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"a width of {self.hidden_size} does not divide into {self.num_attention_heads} heads;"
                " change one of them"
            )
        whole_tiles(self.image_size, self.image_size, self.patch_size)


class PlainViT(VisionBackbone):
    """Patches through one convolution, a class token in front, positions, blocks, a final norm.

    `pooled` is the class token. Pictures of any multiple of the patch size are taken; the position table is
    interpolated for grids other than its own. Hidden states have the class token first, [B, 1 + N, C].
    """

    config: PlainViTConfig
    config_class = PlainViTConfig
    _no_split_modules = ["EncoderBlock"]
    block_class: type[EncoderBlock] = EncoderBlock

    def __init__(self, config: PlainViTConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.patches = nn.Conv2d(config.num_channels, width, config.patch_size, config.patch_size)
        self.class_token = nn.Parameter(torch.zeros(width))  # one dimension, so that it is not decayed
        self.positions = None
        if config.positions != "none":
            grid = self.grid_of(config.image_size, config.image_size)
            self.positions = PositionTable(grid, width, extra=1, kind=config.positions)
        self.blocks = nn.ModuleList(
            self.block_class(
                width, config.num_attention_heads, round(width * config.mlp_ratio), activation=config.activation,
                qkv_bias=config.qkv_bias, drop_path=rate, eps=config.layer_norm_eps,
            )
            for rate in drop_path_rates(config.drop_path, config.num_hidden_layers)
        )  # fmt: skip
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.post_init()

    @property
    def width(self) -> int:
        """C."""
        return self.config.hidden_size

    def grid_of(self, height: int, width: int) -> tuple[int, int]:
        """The patches of a picture. Raises UserError where they do not fill it."""
        return whole_tiles(height, width, self.config.patch_size)

    def embed(self, pixel_values: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """What the first block reads, [B, 1 + N, C], the class token first; and the grid (h, w)."""
        grid = self.grid_of(*pixel_values.shape[-2:])
        x = self.patches(pixel_values.to(self.patches.weight.dtype)).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), 1, -1), x], dim=1)
        return x if self.positions is None else self.positions(x, grid), grid

    def forward(self, pixel_values: Tensor, output_hidden_states: bool = False) -> VisionOutput:
        """Pictures [B, channels, H, W], H and W multiples of the patch size."""
        x, grid = self.embed(pixel_values)
        states = []
        for block in self.blocks:
            x = block(x)
            if output_hidden_states:
                states.append(x)
        x = self.norm(x)
        return VisionOutput(x[:, 1:], grid, x[:, 0], tuple(states) if output_hidden_states else None)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if module is self:
            init.trunc_normal_(self.class_token, std=0.02)
        elif isinstance(module, nn.Conv2d):
            init.trunc_normal_(module.weight, std=0.02)
            init.zeros_(module.bias)  # type: ignore[arg-type]
        else:
            super()._init_weights(module)


def _size(width: int, depth: int, heads: int, **fields: Any) -> dict[str, Any]:
    return {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads, **fields}


VARIANTS = {
    "vit-ti16": _size(192, 12, 3),
    "vit-s16": _size(384, 12, 6),
    "vit-b16": _size(768, 12, 12),
    "vit-b32": _size(768, 12, 12, patch_size=32),
    "vit-l16": _size(1024, 24, 16),
    "vit-mini": _size(128, 6, 4, image_size=32, patch_size=4),  # 64 tokens, as the next
    "vit-mini-64": _size(128, 6, 4, image_size=64, patch_size=8),
}

AutoConfig.register(PlainViTConfig.model_type, PlainViTConfig)
AutoModel.register(PlainViTConfig, PlainViT)
for _name, _fields in VARIANTS.items():
    register(_name, partial(PlainViTConfig, **_fields))
