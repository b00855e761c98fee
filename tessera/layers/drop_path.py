"""Stochastic depth (Huang et al. 2016): a residual branch is left out for a whole sample at a time.

Legend: B samples.
"""

from __future__ import annotations

from torch import Tensor, nn

from tessera.errors import UserError


class DropPath(nn.Module):
    """In training each sample of x [B, ...] becomes zero with chance `rate`, and the others grow by 1 / (1 - rate), so
    that the mean stays. In evaluation x as it is.

    Raises:
        UserError: a rate outside [0, 1).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise UserError(f"a drop-path rate is in [0, 1), not {rate}")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.rate:
            return x
        kept = x.new_empty(x.shape[0], *(1,) * (x.dim() - 1)).bernoulli_(1 - self.rate)
        return x * kept.div_(1 - self.rate)

    def extra_repr(self) -> str:
        return f"rate={self.rate}"
