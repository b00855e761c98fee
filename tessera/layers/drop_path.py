"""Stochastic depth (Huang et al. 2016): in training, a residual branch is left out for some samples."""

from __future__ import annotations

from torch import Tensor, nn

from tessera.errors import UserError


class DropPath(nn.Module):
    """A branch [B, ...]: zero with chance `rate` for each sample, scaled up otherwise; the identity in evaluation.

    Raises:
        UserError: a rate outside [0, 1).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise UserError(f"a drop-path rate is in [0, 1), not {rate}")
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        if not self.training or not self.rate:
            return branch
        kept = branch.new_empty(branch.shape[0], *(1,) * (branch.dim() - 1)).bernoulli_(1 - self.rate)
        return branch * kept.div_(1 - self.rate)


def drop_path_rates(highest: float, depth: int) -> list[float]:
    """The rate of each of `depth` blocks, linear from 0 in the first to `highest` in the last."""
    return [highest * block / max(depth - 1, 1) for block in range(depth)]
