"""A backbone of one convolution, for tests of what all backbones share."""

from functools import partial

from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig

from tessera.vision.base import VisionBackbone, VisionOutput, at_least_one, whole_tiles


@strict
class TinyConfig(PreTrainedConfig):
    model_type = "tessera-test-tiny"

    image_size: int = 16
    num_channels: int = 3
    patch_size: int = 8
    hidden_size: int = 12

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        at_least_one(self, "image_size", "patch_size", "hidden_size")


class Tiny(VisionBackbone):
    config_class = TinyConfig

    def __init__(self, config):
        super().__init__(config)
        self.patches = nn.Conv2d(config.num_channels, config.hidden_size, config.patch_size, config.patch_size)
        self.mix = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size)
        self.post_init()

    @property
    def width(self):
        return self.config.hidden_size

    def grid_of(self, height, width):
        return whole_tiles(height, width, self.config.patch_size)

    def forward(self, pixel_values, output_hidden_states=False):
        grid = self.grid_of(*pixel_values.shape[-2:])
        mixed = self.mix(self.patches(pixel_values).flatten(2).transpose(1, 2))
        tokens = self.norm(mixed)
        return VisionOutput(tokens, grid, tokens.mean(1), (mixed,) if output_hidden_states else None)


AutoConfig.register(TinyConfig.model_type, TinyConfig, exist_ok=True)
AutoModel.register(TinyConfig, Tiny, exist_ok=True)
VARIANTS = {"tiny": TinyConfig, "tiny-wide": partial(TinyConfig, hidden_size=24)}
