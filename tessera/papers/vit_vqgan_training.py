"""What ViT-VQGAN is trained on and how: the recipe, the pictures, the parts that a user names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from tessera.data.images import Augment, Pixels
from tessera.errors import UserError
from tessera.layers.stylegan import Discriminator
from tessera.models.image_ar import ImageARConfig, ImageARModel
from tessera.models.vq import VQConfig, VQTokenizer
from tessera.models.vq.training import Losses, TokenizerInTraining
from tessera.papers.settings import CONFIG, check_roles
from tessera.train.optim import Optimiser
from tessera.zoo.senses import read_perceptual

EYES, TOKENIZER = "eyes", "tokenizer"  # roles of --parts
MINI_EYES = "mini/clip"


@dataclass(frozen=True, kw_only=True)
class Learning:
    """How long and how a part learns; `batch` counts pictures of one update, of all processes together."""

    steps: int
    batch: int
    accumulate: int = 1
    optimiser: Optimiser
    augment: Augment = Augment(crop=1.0)

    @property
    def part(self) -> int:
        """Pictures that are read at once, by all processes together."""
        if self.accumulate < 1 or self.batch % self.accumulate:
            raise UserError(f"a batch of {self.batch} does not divide into {self.accumulate} parts; change one of them")
        return self.batch // self.accumulate


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The tokenizer, then the model of its codes, then, where pictures have classes, a linear probe of its features.

    Args:
        tokenizer, model: fields of both configurations that differ from their defaults.
        critic: channels of the discriminator's widest maps.
        codebook, codes, probe: how the three stages learn.
    """

    tokenizer: Mapping[str, Any] = field(default_factory=dict, metadata={CONFIG: VQConfig})
    model: Mapping[str, Any] = field(default_factory=dict, metadata={CONFIG: ImageARConfig})
    losses: Losses = Losses()
    critic: int = 512
    codebook: Learning
    codes: Learning
    probe: Learning

    def scaled(self, steps: int | None, trained: bool) -> Recipe:
        """`steps` updates in all, shared in the same proportions, of the last two stages alone with a trained
        tokenizer."""
        parts = {"codebook": self.codebook, "codes": self.codes, "probe": self.probe}
        if trained:
            del parts["codebook"]
        if steps is None:
            return self
        whole = sum(part.steps for part in parts.values())
        shared: Any = {name: replace(one, steps=max(1, steps * one.steps // whole)) for name, one in parts.items()}
        return replace(self, **shared)

    def config(self) -> VQConfig:
        """Of the tokenizer.

        Raises:
            UserError: a size that tiles do not fill or that the critic cannot halve, or what else such a
                tokenizer cannot have.
        """
        config = VQConfig(**self.tokenizer)
        if self.losses.laplace and not config.logit_laplace:
            raise UserError("losses.laplace needs tokenizer.logit_laplace; set the one to 0 or the other to true")
        if self.losses.adversary:
            with torch.device("meta"):
                Discriminator(config.image_size, self.critic, config.num_channels)
        return config

    def image_model(self, tokenizer: VQTokenizer, classes: Sequence[str]) -> ImageARModel:
        """A new model of the codes of `tokenizer`.

        Raises:
            UserError: the recipe names another number of codes.
        """
        eyes = tokenizer.config
        fixed = {"codes": eyes.codes, "rows": eyes.grid[0], "columns": eyes.grid[1]}
        for name, value in fixed.items():
            if self.model.get(name, value) != value:
                raise UserError(
                    f"model.{name} is {self.model[name]}, and the tokenizer has {value}; leave model.{name} out"
                )
        return ImageARModel(ImageARConfig(**{**self.model, **fixed, "classes": list(classes)}))

    def in_training(self, tokenizer: VQTokenizer, eyes: str | None) -> TokenizerInTraining:
        """`tokenizer` with what its losses need.

        Args:
            eyes: name or folder of the network of the perceptual loss.
        """
        losses = self.losses
        critic = None
        if losses.adversary:
            critic = Discriminator(tokenizer.config.image_size, self.critic, tokenizer.config.num_channels)
        return TokenizerInTraining(
            tokenizer, losses, critic, read_perceptual(eyes) if losses.perceptual and eyes else None
        )


def pixels(config: VQConfig, augment: Augment | None) -> Pixels:
    """How pictures enter a tokenizer."""
    return Pixels(config.image_size, (0.0,) * config.num_channels, (1.0,) * config.num_channels, augment)


def check_parts(parts: Mapping[str, str], settings: Mapping[str, str]) -> None:
    """Raise UserError for an unknown role, or a setting of a tokenizer that is as it is."""
    check_roles(parts, (EYES, TOKENIZER))
    for name in settings:
        if TOKENIZER in parts and name.partition(".")[0] in (TOKENIZER, "losses", "critic", "codebook"):
            raise UserError(f"the tokenizer {parts[TOKENIZER]} is trained and stays as it is; {name} cannot be set")
