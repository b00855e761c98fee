"""Configuration of GR-1. The defaults are the published ones (github.com/bytedance/GR-1, logs/configs.json)."""

# No `from __future__ import annotations` here: the field checks of huggingface_hub skip annotations that are strings.
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from tessera.errors import UserError
from tessera.layers.attention import NAME as ATTENTION
from tessera.vision.base import at_least_one, whole_tiles

Numbers = list[float] | tuple[float, ...]


@strict
class GR1Config(PreTrainedConfig):
    """A policy over windows of steps.

    Args:
        width, depth, heads, activation, dropout: of the GPT.
        window: T, steps that it remembers.
        text_width, vision_width: of the frozen encoders' features.
        cameras: their names; a step has a picture of each.
        state_size, action_size: numbers of both, the gripper's included.
        gripper: the last number of state and action is that of a gripper, closed below 0 and open above.
        latents: what the resampler leaves of a picture's patches.
        vision_grid: (h, w) of the patches that the image encoder gives.
        places: fixed sines and cosines tell each of them where it stands, before the resampler. Features of a masked
            autoencoder, as published, say so by themselves; those of a contrastive encoder hardly do.
        image_size, patch_size: of the pictures that are foreseen, in pixels.
        standardised: foreseen patches have mean 0 and standard deviation 1 each.
        ahead: steps from a picture to the one that is foreseen from it.
        state_mean, state_scale, action_mean, action_scale: of the numbers without the gripper's: (x - mean) / scale is
            what the network reads and gives. None leaves them as they are, as published.
    """

    model_type = "tessera-gr-1"

    width: int = 384
    depth: int = 12
    heads: int = 12
    activation: str = "relu"
    dropout: float = 0.1
    window: int = 10
    text_width: int = 512
    vision_width: int = 768
    cameras: list[str] | tuple[str, ...] = ("static", "hand")
    state_size: int = 7
    action_size: int = 7
    gripper: bool = True
    latents: int = 9
    vision_grid: list[int] | tuple[int, ...] = (14, 14)
    places: bool = False
    resampler_depth: int = 3
    resampler_heads: int = 4
    resampler_head_width: int = 128
    image_size: int = 224
    patch_size: int = 16
    decoder_depth: int = 2
    decoder_heads: int = 16
    standardised: bool = True
    ahead: int = 3
    state_mean: Numbers | None = None
    state_scale: Numbers | None = None
    action_mean: Numbers | None = None
    action_scale: Numbers | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("attn_implementation", ATTENTION)
        super().__post_init__(**kwargs)
        at_least_one(
            self, "width", "depth", "heads", "window", "text_width", "vision_width", "latents", "resampler_depth",
            "resampler_heads", "resampler_head_width", "decoder_heads", "ahead",
        )  # fmt: skip
        for name in ("heads", "decoder_heads"):
            if self.width % getattr(self, name):
                raise UserError(f"a width of {self.width} does not divide into {getattr(self, name)} {name}")
        if self.width % 4:
            raise UserError(f"the width is {self.width}; the decoder's positions need a multiple of 4")
        if self.places and self.vision_width % 4:
            raise UserError(f"places need features of a width that is a multiple of 4, not {self.vision_width}")
        if not self.cameras:
            raise UserError("a policy sees: name at least one camera")
        if self.ahead >= self.window:
            raise UserError(
                f"a picture {self.ahead} steps ahead lies outside windows of {self.window}; lower one of them"
            )
        for name in ("state", "action"):
            self._check(name)
        whole_tiles(self.image_size, self.image_size, self.patch_size)

    def _check(self, name: str) -> None:
        moving = getattr(self, f"{name}_size") - self.gripper
        if moving < 1:
            raise UserError(
                f"{name}_size is {getattr(self, f'{name}_size')}; there is at least one number beside a gripper's"
            )
        for part in ("mean", "scale"):
            given = getattr(self, f"{name}_{part}")
            if given is not None and len(given) != moving:
                raise UserError(f"{name}_{part} has {len(given)} numbers; there are {moving} without the gripper's")

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of a foreseen picture's patches."""
        return whole_tiles(self.image_size, self.image_size, self.patch_size)


AutoConfig.register(GR1Config.model_type, GR1Config)
