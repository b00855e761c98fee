"""A fixed change of scale, measured once and undone where the raw values are needed: of each channel, or of directions
by what they are read for."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

RIDGE = 1e-4  # of the mean variance, so that directions without spread are not read from


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


class Reweigh(nn.Module):
    """A fixed shift and symmetric linear map of the last dimension [..., d], after which squared distances count by
    what is read from x. The identity until `fit`. Holds buffers, no parameters.

    A model that estimates x by squared error spends itself on the directions in which x spreads most; a reader that
    lives on the others gets noise.
    """

    mean: Tensor
    matrix: Tensor
    undone: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("matrix", torch.eye(width))
        self.register_buffer("undone", torch.eye(width))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) @ self.matrix

    def inverse(self, x: Tensor) -> Tensor:
        """What `forward` was given."""
        return x @ self.undone + self.mean

    @torch.no_grad()
    def fit(self, x: Tensor, read: Tensor) -> None:
        """Measure on x [M, N, d] and what is read from it [M, N, c], each position from its own.

        With B [d, c] the linear map from x to `read`, distances become those of (B B^T + I) / 2, both scaled to the
        same variance, and the mean variance of a channel about 1.
        """
        centred = (x - x.mean(0)).flatten(0, 1).double()
        target = (read - read.mean(0)).flatten(0, 1).double()
        covariance = centred.mT @ centred / len(centred)
        spread = covariance.diagonal().mean()
        eye = torch.eye(x.shape[-1], dtype=torch.double, device=x.device)
        found = torch.linalg.solve(covariance + RIDGE * spread * eye, centred.mT @ target / len(centred))
        by_reader = found @ found.mT / target.square().sum(1).mean() * len(eye)
        values, vectors = torch.linalg.eigh((by_reader + eye / spread) / 2)
        self.mean.copy_(x.mean((0, 1)))
        self.matrix.copy_(vectors * values.sqrt() @ vectors.mT)
        self.undone.copy_(vectors / values.sqrt() @ vectors.mT)
