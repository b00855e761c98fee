"""A loss before it is averaged: a sum and what to divide it by."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Tally(NamedTuple):
    """A sum over targets and their number, so that an average can be taken over several batches and
    processes."""

    total: Tensor
    number: int

    def mean(self, count: float | Tensor | None = None) -> Tensor:
        """The sum over `count`, by default over the targets counted here; 0 where there is none."""
        if isinstance(count, Tensor):
            return self.total / count.clamp(min=1)
        return self.total / max(self.number if count is None else count, 1)
