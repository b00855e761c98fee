"""A tokenizer and what it is trained against: pixels, a network that sees, and a critic.

All losses are of one step: those of the tokenizer pass the critic without moving it, those of the critic see
reconstructions that are cut off.

Legend: B pictures of C channels and H x W pixels, N codes each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tessera.models.vq.modeling import VQOutput, VQTokenizer
from tessera.objectives.adversarial import fooling, frozen_scores, slope, telling
from tessera.objectives.logit_laplace import logit_laplace
from tessera.objectives.perceptual import Perceptual


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Factors on the losses; at 0 one is not computed. The defaults are ViT-VQGAN's, found by one sweep.

    Args:
        laplace: of the logits of pixels; 0 in Parti, whose authors found it harmful.
        adversary: of fooling the critic.
        slope: gamma of the penalty on the critic, taken every `slope_every` batches, so many times as large.
    """

    squared: float = 1.0
    laplace: float = 0.1
    perceptual: float = 0.1
    adversary: float = 0.1
    slope: float = 10.0
    slope_every: int = 16

    def weights(self, commitment: float) -> dict[str, float]:
        """The factor on each term that `restore` gives."""
        found = {"squared": self.squared, "codebook": 1.0, "commitment": commitment}
        found |= {"laplace": self.laplace} if self.laplace else {}
        found |= {"perceptual": self.perceptual} if self.perceptual else {}
        game = {"adversary": self.adversary, "critic": 1.0, "slope": self.slope}
        return found | (game if self.adversary else {})


class TokenizerInTraining(nn.Module):
    """A tokenizer with the parts that its losses need.

    Args:
        critic: scores [B] of pictures; None without an adversarial loss.
        perceptual: None without that loss.
    """

    seen: Tensor

    def __init__(
        self, tokenizer: VQTokenizer, losses: Losses, critic: nn.Module | None = None,
        perceptual: Perceptual | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.tokenizer, self.losses, self.critic, self.perceptual = tokenizer, losses, critic, perceptual
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))  # batches, for the lazy penalty

    @property
    def trainable(self) -> list[str]:
        """Name patterns of what learns."""
        return ["tokenizer.*"] + ["critic.*"] * (self.critic is not None)


def counts(batch: dict[str, Any], model: TokenizerInTraining) -> dict[str, int]:
    """How many targets each term of `restore` has in a batch."""
    pictures = batch["pixel_values"]
    tile = model.tokenizer.config.tile
    codes = len(pictures) * (pictures.shape[2] // tile) * (pictures.shape[3] // tile)
    sizes = {"codebook": codes, "commitment": codes, "squared": pictures.numel(), "laplace": pictures.numel()}
    return {name: sizes.get(name, len(pictures)) for name in model.losses.weights(1.0)}


def restore(model: Any, batch: dict[str, Any]) -> dict[str, tuple[Tensor, int]]:
    """The objective of a training stage over batches with `pixel_values` [B, C, H, W] in [0, 1]."""
    pictures, losses = batch["pixel_values"], model.losses
    out: VQOutput = model.tokenizer(pictures)
    restored, number = out.reconstruction.float(), out.ids.numel()
    terms: dict[str, tuple[Tensor, int]] = {
        "squared": ((restored - pictures).square().sum(), restored.numel()),
        "codebook": (out.codebook * number, number),
        "commitment": (out.commitment * number, number),
    }
    if losses.laplace:
        assert out.mean is not None and out.log_scale is not None, "a tokenizer without logit_laplace has no such loss"
        terms["laplace"] = logit_laplace(out.mean, out.log_scale, pictures)
    if losses.perceptual:
        terms["perceptual"] = model.perceptual(restored, pictures)
    if losses.adversary:
        terms |= _game(model, restored, pictures)
    return terms


def _game(model: TokenizerInTraining, restored: Tensor, pictures: Tensor) -> dict[str, tuple[Tensor, int]]:
    critic, losses = model.critic, model.losses
    assert critic is not None
    penalty: tuple[Tensor, int] = (restored.sum() * 0, len(pictures))
    if int(model.seen) % losses.slope_every == 0 and torch.is_grad_enabled():
        steep = slope(critic, pictures)
        penalty = (steep.total * losses.slope_every, steep.number)
    if model.training and torch.is_grad_enabled():
        model.seen += 1
    return {
        "adversary": fooling(frozen_scores(critic, restored)),
        "critic": telling(critic(pictures), critic(restored.detach())),
        "slope": penalty,
    }
