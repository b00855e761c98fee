"""What frozen features hold: a linear classifier on top of them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch.nn import functional

from tessera.errors import UserError
from tessera.evaluate.intervals import Estimate, exact_binomial


def linear_probe(
    train_x: ArrayLike,
    train_y: ArrayLike,
    test_x: ArrayLike,
    test_y: ArrayLike,
    *,
    decay: float = 1e-3,
    steps: int = 100,
) -> Estimate:
    """Test accuracy of multinomial logistic regression on standardised features, with its exact interval.

    Args:
        train_x: features float [n, d]; `test_x` [m, d] is scaled by the training set's mean and deviation.
        train_y: classes int [n]; `test_y` [m].
        decay: weight of half the squared weights beside the mean cross-entropy.
        steps: at most so many steps of L-BFGS.

    Raises:
        UserError: features and classes do not belong together, or there is one class only.
    """
    x, unseen = (np.asarray(features, dtype=np.float32) for features in (train_x, test_x))
    names, y = np.unique(np.asarray(train_y), return_inverse=True)
    truth = np.asarray(test_y)
    if len(x) != len(y) or len(unseen) != len(truth) or x.shape[1:] != unseen.shape[1:] or x.ndim != 2:
        raise UserError(
            f"a probe of {list(x.shape)} and {list(unseen.shape)} features has {len(y)} and {len(truth)} classes"
        )
    if len(names) < 2:
        raise UserError("a probe needs two classes or more in its training set")
    mean, deviation = x.mean(axis=0), np.maximum(x.std(axis=0), 1e-6)
    weight = _fit(torch.from_numpy((x - mean) / deviation), torch.from_numpy(y), len(names), decay, steps)
    logits = _with_one(torch.from_numpy((unseen - mean) / deviation)) @ weight
    said = names[logits.argmax(dim=1).numpy()]
    return exact_binomial(int((said == truth).sum()), len(truth))


def _with_one(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x, torch.ones(len(x), 1)], dim=1)


def _fit(x: torch.Tensor, y: torch.Tensor, classes: int, decay: float, steps: int) -> torch.Tensor:
    """Weights [d + 1, classes]; the last row is the bias, which does not decay."""
    weight = torch.zeros(x.shape[1] + 1, classes, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight], max_iter=steps, history_size=10, line_search_fn="strong_wolfe")
    inputs = _with_one(x)

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = functional.cross_entropy(inputs @ weight, y) + decay / 2 * weight[:-1].square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimiser.step(closure)
    return weight.detach()
