"""What frozen features hold: a linear classifier on top of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch.nn import functional

from tessera.errors import UserError
from tessera.evaluate.intervals import Estimate, exact_binomial

RANK = 1e-6  # singular values below this share of the largest are rounding of single precision


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
    labels = torch.from_numpy(y)
    weight = linear_fit(
        torch.from_numpy((x - mean) / deviation), len(names), lambda out: functional.cross_entropy(out, labels),
        decay=decay, steps=steps,
    )  # fmt: skip
    logits = _with_one(torch.from_numpy((unseen - mean) / deviation)) @ weight
    said = names[logits.argmax(dim=1).numpy()]
    return exact_binomial(int((said == truth).sum()), len(truth))


def linear_fit(
    x: torch.Tensor,
    outputs: int,
    loss: Callable[[torch.Tensor], torch.Tensor],
    *,
    decay: float = 1e-3,
    steps: int = 100,
) -> torch.Tensor:
    """Weights [d + 1, outputs] of the linear layer on features float [n, d] that L-BFGS finds from zeros; the last row
    is the bias, which does not decay.

    Args:
        loss: of what the layer gives for all features, [n, outputs].
        decay: weight of half the squared weights beside it.
        steps: at most so many.
    """
    weight = torch.zeros(x.shape[1] + 1, outputs, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight], max_iter=steps, history_size=10, line_search_fn="strong_wolfe")
    inputs = _with_one(x)

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        found = loss(inputs @ weight) + decay / 2 * weight[:-1].square().sum()
        found.backward()
        return found

    with torch.enable_grad():
        optimiser.step(closure)
    return weight.detach()


def _with_one(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x, torch.ones(len(x), 1)], dim=1)


def unexplained(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """|X - A Y|^2 / |X|^2 with the best A, which is X Y^+: how much of tokens X [b, N, C] no linear map makes of the
    tokens Y [b, M, C], float64 [b]."""
    x, y = x.double(), y.double()
    rest = x - x @ torch.linalg.pinv(y, rtol=RANK) @ y
    return rest.square().sum((1, 2)) / x.square().sum((1, 2))
