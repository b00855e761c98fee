"""What enters the U-Net: clean latents of pictures, and the words that were adapted to it.

Shape legend: B pictures; Z latent channels; N words of D channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional

from tessera.errors import UserError
from tessera.models.diffusion.positions import sine_grid

AUTOENCODERS = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}


class TextAdapter(nn.Module):
    """c = t + gamma * MLP(t) for words t [..., D]; gamma [D] starts small, so that training starts from the words as
    they are."""

    def __init__(self, width: int, gamma: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), gamma))
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, words: Tensor) -> Tensor:
        return words + self.gamma * self.mlp(words)


class LatentEncoder(nn.Module):
    """The encoder of a latent diffusion model, frozen, its decoder left out.

    Args:
        config: of an AutoencoderKL or an AutoencoderTiny, with `_class_name`.
        scaled: latents as the U-Net was trained on them, and not as the encoder gives them.
        autoencoder: a ready one, whose encoder is taken as it is; by default made from `config`.

    Attributes:
        mean, spread: [Z], taken from the scaled latents and divided out; 0 and 1 for Stable Diffusion.

    Raises:
        UserError: an autoencoder of another kind.
    """

    mean: Tensor
    spread: Tensor

    def __init__(
        self, config: Mapping[str, Any], scaled: bool, autoencoder: AutoencoderKL | AutoencoderTiny | None = None
    ) -> None:
        super().__init__()
        kind = AUTOENCODERS.get(config.get("_class_name", ""))
        if kind is None:
            raise UserError(f"the autoencoder is a {config.get('_class_name')!r}; known are {', '.join(AUTOENCODERS)}")
        whole = kind.from_config(dict(config)) if autoencoder is None else autoencoder
        self.encoder, self.factor, self.scaled = whole.encoder, whole.config.scaling_factor if scaled else 1.0, scaled
        self.quant_conv = getattr(whole, "quant_conv", None)
        self.latents: int = whole.config.latent_channels
        blocks = getattr(whole.config, "block_out_channels", None) or whole.config.encoder_block_out_channels
        self.stride = 2 ** (len(blocks) - 1)
        self.tiny = kind is AutoencoderTiny
        self.register_buffer("mean", torch.zeros(self.latents))
        self.register_buffer("spread", torch.ones(self.latents))
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, pictures: Tensor) -> Tensor:
        """Latents [B, Z, H / stride, W / stride] of pictures [B, 3, H, W] in [-1, 1]: the mean of the posterior, no
        draw from it."""
        found = self.encoder(pictures)
        if self.quant_conv is not None:
            found = self.quant_conv(found)
        if not self.tiny:
            found = found.chunk(2, dim=1)[0]
        if not self.scaled:
            return found
        return (found * self.factor - self.mean[:, None, None]) / self.spread[:, None, None]


def unet_input(unet: UNet2DConditionModel, latents: Tensor) -> Tensor:
    """What a U-Net takes of latents [B, Z, h, w]: patches of p x p of them where it has p^2 times their channels, and
    sine codes of the places where it takes more channels than it gives, as `Painter`'s does."""
    given = latents.shape[1]
    patch = patch_of(unet.config, given)
    patches = functional.pixel_unshuffle(latents, patch)
    extra = unet.config.in_channels - patches.shape[1]
    if not extra:
        return patches
    places = sine_grid(extra, *patches.shape[-2:]).to(patches)
    return torch.cat([patches, places.expand(len(patches), -1, -1, -1)], dim=1)


def patch_of(config: Mapping[str, Any], latents: int) -> int:
    """Latents a side of what one place of the U-Net's input holds.

    Raises:
        UserError: the U-Net is of other latents.
    """
    out = config["out_channels"]
    patch = round((out / latents) ** 0.5)
    if not patch or patch * patch * latents != out or config["in_channels"] < out:
        raise UserError(
            f"the U-Net takes {config['in_channels']} channels and gives {out}; it is not one of the autoencoder's"
            f" {latents} latents"
        )
    return patch
