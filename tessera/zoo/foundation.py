"""The frozen parts that VL-GPT starts from: mini ones out of the package, or published ones from their folders.

Shape legend: B pictures or sentences; S patch states of width C; T x D text condition; Q x D image condition.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    CLIPTextModel,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from tessera.data.images import Pixels
from tessera.data.sample import Image
from tessera.data.sequence import CLOSE, OPEN, PLACE
from tessera.errors import CheckpointError, UserError, nearest, reason
from tessera.layers.attention import NAME as ATTENTION
from tessera.models.diffusion.painter import Painter
from tessera.models.diffusion.published import load_published
from tessera.weights import Model, read_model
from tessera.zoo.parts import autoencoder_of, load_tokenizer, locate

PUBLISHED = ("language", "vision", "painter", "adapter", "image_encoder")
MINI = {
    "language": "mini/lm", "vision": "mini/clip", "painter": "mini/diffusion", "text_encoder": "mini/clip",
    "image_encoder": "mini/clip",
}  # fmt: skip
# Outlines and exact places are all in a small CLIP's first states, where they are hardly anything beside grain and
# background; what has which shape is most of what its last ones tell.
MINI_LAYERS = (0, -1)


@dataclass
class TextConditioner:
    """The diffusion model's own text encoder: sentences to e_t."""

    tokenizer: PreTrainedTokenizerFast
    encoder: CLIPTextModel

    @torch.no_grad()
    def __call__(self, sentences: Sequence[str]) -> Tensor:
        """e_t [B, T, D], padded and cut to the encoder's T positions, all of which the U-Net reads."""
        ids = self.tokenizer(
            list(sentences), padding="max_length", truncation=True, return_tensors="pt",
            max_length=self.encoder.config.max_position_embeddings,
        ).input_ids  # fmt: skip
        return self.encoder(ids.to(self.encoder.device)).last_hidden_state


@dataclass
class ImageConditioner:
    """The adapter's image encoder and Resampler: pictures to e_v.

    Args:
        layers: which of the encoder's hidden states the Resampler reads, side by side.
    """

    painter: Painter
    encoder: PreTrainedModel
    pixels: Pixels
    layers: Sequence[int]

    @torch.no_grad()
    def __call__(self, images: Sequence[Image]) -> Tensor:
        """e_v [B, Q, D]."""
        return self.of_states(self.states(images))

    @torch.no_grad()
    def states(self, images: Sequence[Image]) -> Tensor:
        """The encoder's patch states [B, S, C], C over all layers."""
        return read_layers(self.encoder, stack_pixels(images, self.pixels).to(self.encoder.device), self.layers)

    @torch.no_grad()
    def of_states(self, states: Tensor) -> Tensor:
        """e_v [B, Q, D] of patch states [B, S, C]."""
        return self.painter.image_condition(alike(states, len(self.layers)))


@dataclass
class Foundation:
    """What stages A, B and C of VL-GPT are built on. `tokenizer` has [IMG], [/IMG] and <image>."""

    tokenizer: PreTrainedTokenizerFast
    language: LlamaForCausalLM
    vision: CLIPVisionModel
    pixels: Pixels
    painter: Painter
    text: TextConditioner
    image: ImageConditioner

    def freeze(self) -> Foundation:
        """Evaluation mode and no gradient, everywhere but in the language model."""
        for module in (self.vision, self.painter, self.text.encoder, self.image.encoder):
            module.eval().requires_grad_(False)
        return self

    def to(self, device: torch.device) -> Foundation:
        """The frozen parts on `device`, where their pictures and sentences are then read."""
        parts: list[nn.Module] = [self.vision, self.painter, self.text.encoder, self.image.encoder]
        for module in parts:
            module.to(device)
        return self


@torch.no_grad()
def read_layers(encoder: nn.Module, pixel_values: Tensor, layers: Sequence[int]) -> Tensor:
    """Some of the `hidden_states` of a CLIP vision encoder side by side, [B, S, C], C over all of them."""
    states = encoder(pixel_values, output_hidden_states=True).hidden_states
    return torch.cat([states[layer] for layer in layers], dim=-1)


def alike(states: Tensor, layers: int) -> Tensor:
    """States [..., C] of several layers, each brought to unit spread: the last ones of CLIP are many times larger."""
    if layers == 1:
        return states
    each = states.unflatten(-1, (layers, -1))
    return nn.functional.layer_norm(each, each.shape[-1:]).flatten(-2)


def stack_pixels(images: Sequence[Image], pixels: Pixels) -> Tensor:
    """Pictures decoded and normalised, float32 [B, 3, H, W]."""
    return torch.from_numpy(np.stack([pixels.one(image.pil()) for image in images]))


def load_mini(names: Mapping[str, str] | None = None, dtype: torch.dtype = torch.float32) -> Foundation:
    """The parts that ship with Tessera; `names` replaces some by role.

    Raises:
        UserError: an unknown role or part.
    """
    chosen = MINI | _known(names or {}, tuple(MINI))
    where = {role: locate(name) for role, name in chosen.items()}
    tokenizer = read_tokenizer(where["language"])
    language = read_part(LlamaForCausalLM, where["language"], dtype, attn_implementation=ATTENTION)
    vision = read_part(CLIPVisionModel, where["vision"], dtype, attn_implementation=ATTENTION)
    encoder = read_part(CLIPTextModel, where["text_encoder"], dtype)
    words = read_tokenizer(where["text_encoder"])
    painter = Painter.from_pretrained(where["painter"], dtype, autoencoder_of(chosen["painter"]))
    pixels = _pixels(vision)
    image = ImageConditioner(painter, vision, pixels, MINI_LAYERS)
    return Foundation(tokenizer, language, vision, pixels, painter, TextConditioner(words, encoder), image).freeze()


def load_published_parts(names: Mapping[str, str], dtype: torch.dtype = torch.float32) -> Foundation:
    """LLaMA, CLIP, Stable Diffusion 1.5 and IP-Adapter Plus from their published folders.

    Args:
        names: `language` (a LLaMA folder), `vision` (CLIP ViT-L/14), `painter` (a Stable Diffusion folder),
            `adapter` (ip-adapter-plus_sd15.safetensors), `image_encoder` (the adapter's CLIP ViT-H folder).

    Raises:
        UserError: a role is missing or unknown.
        CheckpointError: a part is damaged, pickled or does not fit.
    """
    names = _known(names, PUBLISHED)
    missing = [role for role in PUBLISHED if role not in names]
    if missing:
        raise UserError(
            f"the published size needs a checkpoint for {', '.join(missing)};"
            " give each as --parts ROLE=FOLDER, for instance --parts language=/models/llama-7b"
        )
    painter = load_published(names["painter"], names["adapter"], names["image_encoder"], dtype)
    tokenizer = read_tokenizer(names["language"])
    tokenizer.add_special_tokens({"extra_special_tokens": [OPEN, CLOSE, PLACE]}, replace_extra_special_tokens=False)
    language = read_part(LlamaForCausalLM, names["language"], dtype, attn_implementation=ATTENTION)
    vision = read_part(CLIPVisionModel, names["vision"], dtype, attn_implementation=ATTENTION)
    encoder = read_part(CLIPTextModel, Path(names["painter"]) / "text_encoder", dtype)
    words = read_tokenizer(Path(names["painter"]) / "tokenizer")
    seer = read_part(CLIPVisionModelWithProjection, names["image_encoder"], dtype)
    image = ImageConditioner(painter, seer, _pixels(seer), layers=(-2,))
    pixels = _pixels(vision)
    return Foundation(tokenizer, language, vision, pixels, painter, TextConditioner(words, encoder), image).freeze()


def read_part(kind: type[Model], folder: str | Path, dtype: torch.dtype, **options: Any) -> Model:
    """`read_model`, with the way out where the part is not on this machine.

    Raises:
        CheckpointError: as `read_model`.
    """
    try:
        return read_model(kind, folder, dtype, **options)
    except CheckpointError as error:
        raise CheckpointError(f"{error}{_fetch(folder)}") from error


def read_tokenizer(folder: str | Path) -> PreTrainedTokenizerFast:
    """The fast tokenizer of a folder.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    try:
        return load_tokenizer(folder)
    except Exception as error:  # as above
        raise CheckpointError(f"the tokenizer of {folder} cannot be loaded: {reason(error)}{_fetch(folder)}") from error


def _fetch(folder: str | Path) -> str:
    """The way out where a part is not on this machine."""
    here = Path(folder).is_dir()
    return "" if here else f"; give a folder on this machine, or fetch it with `hf download {folder}`"


def _pixels(encoder: PreTrainedModel) -> Pixels:
    """How pictures enter a CLIP image encoder."""
    return Pixels(encoder.config.image_size)


def _known(names: Mapping[str, str], roles: Sequence[str]) -> dict[str, str]:
    for role in names:
        if role not in roles:
            raise UserError(f"there is no part {role!r} at this size of VL-GPT{nearest(role, roles)}")
    return dict(names)
