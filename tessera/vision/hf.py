"""Published image encoders of transformers behind the interface of all backbones: CLIPVisionModel and
SiglipVisionModel (alone or in a whole CLIP or SigLIP), ViTModel, ViTMAEModel (which sees whole pictures here),
Dinov2Model.

    backbone = create("/models/clip-vit-large-patch14")  # tessera.vision.registry

Legend: B pictures, h x w grid of patches, N = h * w, C width.
"""

# No `from __future__ import annotations` here: the field checks of huggingface_hub skip annotations that are strings.
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    CLIPVisionModel,
    Dinov2Model,
    PreTrainedConfig,
    PreTrainedModel,
    SiglipVisionModel,
    ViTMAEModel,
    ViTModel,
)
from transformers.configuration_utils import SubConfigSpec

from tessera.errors import UserError, nearest
from tessera.layers.attention import NAME as ATTENTION
from tessera.vision.base import VisionBackbone, VisionOutput, whole_tiles
from tessera.vision.registry import register_type
from tessera.weights import read_model

# By the type that config.json names; a whole CLIP or SigLIP is read for its image half.
KINDS: dict[str, type[PreTrainedModel]] = {
    "clip": CLIPVisionModel,
    "clip_vision_model": CLIPVisionModel,
    "siglip": SiglipVisionModel,
    "siglip_vision_model": SiglipVisionModel,
    "vit": ViTModel,
    "vit_mae": ViTMAEModel,
    "dinov2": Dinov2Model,
}
_OPTIONS: dict[str, dict[str, Any]] = {"vit": {"add_pooling_layer": False}}  # no classifier reads that layer


@strict
class PublishedVisionConfig(PreTrainedConfig):
    """The configuration of one of KINDS, as transformers has it; CLIP ViT-B/32 by default."""

    model_type = "tessera-published-vision"
    sub_configs_defaults = {"vision_config": SubConfigSpec(config_class=AutoConfig, model_type="clip_vision_model")}

    vision_config: Any = None  # a configuration or its dictionary

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("attn_implementation", ATTENTION)
        super().__post_init__(**kwargs)
        kind = self.vision_config.model_type
        if kind not in KINDS:
            raise UserError(f"a {kind!r} cannot be wrapped as a backbone{nearest(kind, KINDS)}")

    @property
    def image_size(self) -> int:
        """Pixels a side that the position table is made for."""
        return self.vision_config.image_size

    @property
    def num_channels(self) -> int:
        """Channels of a picture."""
        return self.vision_config.num_channels


class PublishedBackbone(VisionBackbone):
    """Tokens are the last states after the final norm (CLIP itself applies that norm to the class token alone; the
    states before it are `hidden_states[-1]`), `pooled` is the class token. Hidden states have it first, [B, 1 + N, C].
    SigLIP has none: its `pooled` is what its head makes of all tokens, or their mean where it has no head.

    Args:
        vision: a ready encoder, taken as it is; by default made from the configuration.
    """

    config: PublishedVisionConfig
    config_class = PublishedVisionConfig

    def __init__(self, config: PublishedVisionConfig, vision: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        inner = config.vision_config
        self.vision = (
            vision if vision is not None else KINDS[inner.model_type](inner, **_OPTIONS.get(inner.model_type, {}))
        )
        if isinstance(self.vision, ViTMAEModel):
            self.vision.config.mask_ratio = 0.0  # what it was pre-trained to hide
        self.post_init()

    @property
    def width(self) -> int:
        """C."""
        return self.config.vision_config.hidden_size

    @property
    def class_token(self) -> bool:
        """Whether one stands before the states of the patches."""
        return not isinstance(self.vision, SiglipVisionModel)

    @property
    def final_norm(self) -> nn.Module:
        """CLIP's and SigLIP's have a name of their own."""
        named = isinstance(self.vision, CLIPVisionModel | SiglipVisionModel)
        return getattr(self.vision, "post_layernorm" if named else "layernorm")

    def grid_of(self, height: int, width: int) -> tuple[int, int]:
        """The patches of a picture. Raises UserError where they do not fill it."""
        return whole_tiles(height, width, self.config.vision_config.patch_size)

    def forward(self, pixel_values: Tensor, output_hidden_states: bool = False) -> VisionOutput:
        """Pictures [B, channels, H, W], H and W multiples of the patch size; positions are interpolated as
        transformers does it."""
        height, width = pixel_values.shape[-2:]
        grid = self.grid_of(height, width)
        options: dict[str, Any] = {"output_hidden_states": output_hidden_states}
        if not isinstance(self.vision, Dinov2Model):  # which interpolates unasked
            options["interpolate_pos_encoding"] = (height, width) != (self.config.image_size,) * 2
        if isinstance(self.vision, ViTMAEModel):  # which would shuffle what it keeps
            places = torch.arange(grid[0] * grid[1], device=pixel_values.device)
            options["noise"] = places.expand(len(pixel_values), -1)
        out = self.vision(pixel_values.to(self.vision.dtype), **options)
        states = out.last_hidden_state
        if isinstance(self.vision, CLIPVisionModel):
            states = self.vision.post_layernorm(states)
        hidden = tuple(out.hidden_states[1:]) if output_hidden_states else None
        if isinstance(self.vision, SiglipVisionModel):
            pooled = states.mean(1) if out.pooler_output is None else out.pooler_output
            return VisionOutput(states, grid, pooled, hidden)
        return VisionOutput(states[:, 1:], grid, states[:, 0], hidden)


def _load(kind: str, folder: Path) -> PublishedBackbone:
    """The encoder in a folder as transformers saves it, in evaluation mode."""
    options = {"local_files_only": True, "attn_implementation": ATTENTION, **_OPTIONS.get(kind, {})}
    vision: Any = read_model(KINDS[kind], folder, **options)
    return PublishedBackbone(PublishedVisionConfig(vision_config=vision.config), vision).eval()


AutoConfig.register(PublishedVisionConfig.model_type, PublishedVisionConfig)
AutoModel.register(PublishedVisionConfig, PublishedBackbone)
for _kind in KINDS:
    register_type(_kind, partial(_load, _kind))
