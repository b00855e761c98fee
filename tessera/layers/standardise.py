"""A fixed shift and scale of each channel, measured once and undone exactly where the raw values are
needed."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn


class Standardise(nn.Module):
    """(x - mean) / std over the last dimension [..., d]; the identity until `fit`. Holds buffers, no
    parameters."""

    mean: Tensor
    std: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std

    def inverse(self, x: Tensor) -> Tensor:
        """What `forward` was given."""
        return x * self.std + self.mean

    @torch.no_grad()
    def fit(self, x: Tensor, kind: Literal["global", "channel"]) -> None:
        """Measure on x [..., d]. "global" divides all channels by one root mean square and shifts none."""
        x = x.flatten(0, -2).float()
        if kind == "global":
            self.mean.zero_()
            self.std.fill_(x.square().mean().sqrt())
        else:
            self.mean.copy_(x.mean(0))
            self.std.copy_(x.std(0).clamp_min(1e-6))
