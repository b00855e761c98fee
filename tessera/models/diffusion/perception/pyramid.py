"""One pass of a U-Net of diffusers, read inside: a feature map of each decoder stage, and where the words were seen.

VPD (Zhao et al. 2023, arXiv 2303.02153). The features are those of the last layer but one of every decoder stage, and
of the last layer of the finest. Cross-attention maps, averaged over heads and over the layers of one resolution, in
encoder and decoder, are further channels of the features of that resolution.

Shape legend: B pictures; Z channels of latents of h x w; N words of D channels; stage i, counted from the finest, has
features of C_i channels on a grid 2^i times coarser.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn

from tessera.errors import UserError

_CROSS = ".attn2.processor"
_SIDES = ("down_blocks.", "up_blocks.")  # the middle's maps are not read


class Maps:
    """Cross-attention maps of one pass, [B, places, N] each, of grids of at most `largest` places."""

    def __init__(self) -> None:
        self.largest, self.found = 0, list[Tensor]()

    def averaged(self, height: int, width: int) -> Tensor | None:
        """The mean map of all layers on this grid, [B, N, height, width]; None where there is none."""
        here = [one for one in self.found if one.shape[1] == height * width]
        return torch.stack(here).mean(0).mT.unflatten(2, (height, width)) if here else None


class KeepsMaps:
    """An attention processor of diffusers that writes its softmax down; where the grid is too large, the fast one."""

    def __init__(self, maps: Maps) -> None:
        self.maps, self.fast = maps, AttnProcessor2_0()

    def __call__(
        self, attention: Attention, states: Tensor, encoder_hidden_states: Tensor, attention_mask: Any = None
    ) -> Tensor:
        """Attention from places [B, places, C] to words [B, N, D], which gives [B, places, C]."""
        if states.shape[1] > self.maps.largest:
            return self.fast(attention, states, encoder_hidden_states, attention_mask)
        query, key, value = (
            attention.head_to_batch_dim(part)
            for part in (
                attention.to_q(states), attention.to_k(encoder_hidden_states), attention.to_v(encoder_hidden_states)
            )
        )  # fmt: skip
        shares = attention.get_attention_scores(query, key, attention_mask)  # [B * heads, places, N]
        self.maps.found.append(shares.unflatten(0, (len(states), -1)).mean(1))
        mixed = attention.batch_to_head_dim(torch.bmm(shares, value))
        return attention.to_out[1](attention.to_out[0](mixed))


class UNetPyramid(nn.Module):
    """A text-to-image U-Net whose decoder is read.

    Args:
        unet: of Stable Diffusion 1 or 2, or alike: words enter by cross-attention and by nothing else. Its attention
            processors are replaced; what it predicts stays as it was.
        largest_map: the largest grid whose maps are kept, as a share of the side of the U-Net's input; 0 keeps none.

    Raises:
        UserError: a U-Net of another kind.
    """

    def __init__(self, unet: UNet2DConditionModel, largest_map: float = 0.5) -> None:
        super().__init__()
        check(unet)
        self.unet, self.largest_map, self.maps = unet, largest_map, Maps()
        plain, keeping = AttnProcessor2_0(), KeepsMaps(self.maps)
        unet.set_attn_processor({name: keeping if _is_read(name) else plain for name in unet.attn_processors})

    @property
    def stages(self) -> int:
        """How many feature maps there are."""
        return len(self.unet.up_blocks)

    def channels(self, words: int) -> list[int]:
        """Channels of the feature maps from fine to coarse, with the maps of `words` words."""
        return [
            width + words * self._has_maps(stage) for stage, width in enumerate(self.unet.config.block_out_channels)
        ]

    def _has_maps(self, stage: int) -> bool:
        sides = (f"down_blocks.{stage}.", f"up_blocks.{self.stages - 1 - stage}.")
        attends = any(_is_read(name) and name.startswith(sides) for name in self.unet.attn_processors)
        return attends and 2.0**-stage <= self.largest_map

    def forward(self, inputs: Tensor, timesteps: Tensor, words: Tensor) -> list[Tensor]:
        """Feature maps from fine to coarse of the U-Net's input [B, channels, h, w] at timesteps int [B], with
        words [B, N, D]: [B, C_i (+ N), h / 2^i, w / 2^i]."""
        height, width = inputs.shape[-2:]
        side = int(self.largest_map**2 * height * width)
        with self._read(side) as features:
            self.unet(inputs, timesteps, words, return_dict=False)
            seen = [features[stage] for stage in range(self.stages)]
            maps = [self.maps.averaged(*one.shape[-2:]) for one in seen]
        return [one if found is None else torch.cat([one, found], 1) for one, found in zip(seen, maps, strict=True)]

    @contextmanager
    def _read(self, largest: int) -> Iterator[dict[int, Tensor]]:
        """Within, features by stage are noted as the U-Net computes them, and maps of at most `largest` places."""
        features: dict[int, Tensor] = {}
        self.maps.found, self.maps.largest = [], largest
        with ExitStack() as hooks:
            for stage, module in enumerate(self._layers()):

                def note(module: nn.Module, inputs: Any, output: Any, stage: int = stage) -> None:
                    features[stage] = output[0] if isinstance(output, tuple) else output

                hooks.callback(module.register_forward_hook(note).remove)
            try:
                yield features
            finally:
                self.maps.found, self.maps.largest = [], 0

    def _layers(self) -> list[nn.Module]:
        """The module after which each stage is read, from fine to coarse."""
        coarse: list[nn.Module] = []
        for block in self.unet.up_blocks[:-1]:
            layers = getattr(block, "attentions", block.resnets)
            coarse.append(layers[max(len(layers) - 2, 0)])
        return [self.unet.up_blocks[-1], *reversed(coarse)]


def _is_read(name: str) -> bool:
    return name.endswith(_CROSS) and name.startswith(_SIDES)


def check(unet: UNet2DConditionModel) -> None:
    """Refuse a U-Net that needs more than latents, a timestep and words.

    Raises:
        UserError: it does, or words do not enter it.
    """
    config: Mapping[str, Any] = unet.config
    for name in ("addition_embed_type", "class_embed_type", "encoder_hid_dim_type", "num_class_embeds"):
        if config.get(name) is not None:
            raise UserError(
                f"the U-Net has {name}={config[name]!r} and needs more than words; take one of the kind of Stable"
                " Diffusion 1 or 2"
            )
    if not any(map(_is_read, unet.attn_processors)):
        raise UserError("the U-Net has no cross-attention to words; take one of the kind of Stable Diffusion 1 or 2")


def without_output(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """The U-Net without its last norm and convolution, which no feature is read after."""
    unet.conv_norm_out, unet.conv_out = None, nn.Identity()
    return unet


def grid_of(size: Sequence[int], tile: int, what: str = "the picture") -> tuple[int, int]:
    """Rows and columns of tiles of a picture of (H, W) pixels.

    Raises:
        UserError: it does not divide into whole ones.
    """
    height, width = size
    if height % tile or width % tile or not height or not width:
        raise UserError(
            f"{what} of {width} x {height} pixels does not divide into the {tile} x {tile} tiles of the U-Net; bring"
            f" both sides to a multiple of {tile}"
        )
    return height // tile, width // tile
