"""Mean squared error of a continuous target."""

from __future__ import annotations

from torch import Tensor

from tessera.objectives.tally import Tally


def regression(predicted: Tensor, target: Tensor) -> Tally:
    """Sum over the first dimension of the squared error averaged over all others, in fp32.

    Both are [K, ...] of one shape; the target gets no gradient.

    Raises:
        ValueError: the shapes differ. They are never broadcast.
    """
    if predicted.shape != target.shape:
        raise ValueError(f"regression of {tuple(predicted.shape)} onto a target of shape {tuple(target.shape)}")
    error = predicted.float() - target.detach().float()
    per_item = max(error[:1].numel(), 1)
    return Tally(error.square().sum() / per_item, len(predicted))
