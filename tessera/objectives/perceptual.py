"""How different two pictures look to a network that has learned to see (Zhang et al. 2018, arXiv 1801.03924, without
the learned weights of channels).

Legend: B pictures of S x S pixels, n tokens or h x w positions of C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tessera.objectives.tally import Tally


class Perceptual(nn.Module):
    """Squared distance of states that were brought to length 1 over their channels, mean over positions and blocks.

    Args:
        eyes: an image encoder, called as a `VisionBackbone`: `eyes(pixel_values, output_hidden_states=True)`. It stays
            frozen and in evaluation mode.
        mean, std: of each channel of the pictures that it expects.
        blocks: whose states are compared, counted from the first; None for all.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, eyes: nn.Module, mean: Sequence[float], std: Sequence[float], blocks: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        self.eyes = eyes.requires_grad_(False).eval()
        self.blocks = blocks
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    def train(self, mode: bool = True) -> Perceptual:
        """As everywhere, but the eyes stay in evaluation mode."""
        super().train(mode)
        self.eyes.eval()
        return self

    def states(self, pictures: Tensor) -> list[Tensor]:
        """Of pictures [B, 3, S, S] in [0, 1]: states of each block, [B, n, C] of length 1."""
        seen: Any = self.eyes((pictures - self.mean) / self.std, output_hidden_states=True)
        chosen = seen.hidden_states if self.blocks is None else [seen.hidden_states[place] for place in self.blocks]
        flat = [state.flatten(2).transpose(1, 2) if state.dim() == 4 else state for state in chosen]
        return [F.normalize(state.float(), dim=-1) for state in flat]

    def forward(self, restored: Tensor, pictures: Tensor) -> Tally:
        """Sum over the pictures of their distance; the gradient goes to `restored` alone."""
        with torch.no_grad():
            wanted = self.states(pictures)
        pairs = zip(self.states(restored), wanted, strict=True)
        each = torch.stack([(ours - theirs).square().sum(-1).mean(1) for ours, theirs in pairs]).mean(0)
        return Tally(each.sum(), len(each))
