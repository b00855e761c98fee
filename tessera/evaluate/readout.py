"""What a linear map can read out of frozen features: ridge regression, fitted in closed form.

Legend: n samples of d features and k targets; m samples that were not fitted.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

DECAYS = (1e-4, 1e-3, 1e-2, 1e-1)  # shares of the features' mean square


def ridge(x: Tensor, y: Tensor, decay: float) -> Tensor:
    """The map [d, k] with the least squared error from x [n, d] to y [n, k], without an intercept; float64.

    Args:
        decay: penalty on the map's squares a sample, as a share of the mean square of a feature.
    """
    x, y = x.double(), y.double()
    penalty = (decay * x.square().sum() / x.shape[1]).clamp_min(1e-12)
    wide = len(x) < x.shape[1]  # then the same map comes out of the smaller system between the samples
    gram = x @ x.T if wide else x.T @ x
    gram.diagonal().add_(penalty)
    return x.T @ torch.linalg.solve(gram, y) if wide else torch.linalg.solve(gram, x.T @ y)


def linear_readout(x: Tensor, y: Tensor, unseen: Tensor, decays: Sequence[float] = DECAYS) -> Tensor:
    """What the best linear map, with an intercept, says of `unseen` [m, d]: float64 [m, k].

    The map is fitted to the first four fifths of x [n, d] and y [n, k], with the decay that has the least squared
    error on the last fifth.
    """
    cut = len(x) * 4 // 5
    x, y = x.double(), y.double()
    mean_x, mean_y = x[:cut].mean(0), y[:cut].mean(0)
    x, y = x - mean_x, y - mean_y
    maps = [ridge(x[:cut], y[:cut], decay) for decay in decays]
    best = min(maps, key=lambda one: float((x[cut:] @ one - y[cut:]).square().mean()))
    return (unseen.double() - mean_x) @ best + mean_y
