"""Linear readout: exact on a linear relation, shrinks where the features say nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tessera.evaluate.readout import linear_readout, ridge


def _normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def test_ridge_without_decay_is_least_squares() -> None:
    x, y = _normal(50, 4), _normal(50, 3, seed=1)
    assert torch.allclose(ridge(x, y, 0.0), torch.linalg.lstsq(x, y).solution)


@pytest.mark.parametrize("samples", [50, 3])
def test_ridge_is_the_minimum_of_error_and_penalty(samples: int) -> None:
    x, y = _normal(samples, 4), _normal(samples, 3, seed=1)
    penalty = 0.5 * x.square().sum(0).mean()
    found = ridge(x, y, 0.5)
    assert torch.allclose(x.T @ (x @ found - y) + penalty * found, torch.zeros(4, 3, dtype=torch.float64), atol=1e-9)


def test_a_linear_relation_is_read_exactly_whatever_its_offset() -> None:
    x, truth = _normal(200, 6) + 3, _normal(6, 2, seed=1)
    unseen = _normal(10, 6, seed=2)
    read = linear_readout(x, x @ truth + 5, unseen, decays=(1e-9,))
    assert torch.allclose(read, unseen @ truth + 5, atol=1e-5)


def test_features_that_say_nothing_give_little_more_than_the_mean() -> None:
    x, y, unseen = _normal(100, 40), _normal(100, 2, seed=1) + 7, _normal(50, 40, seed=2)
    read = linear_readout(x, y, unseen, decays=(1e-4, 10.0, 1e4))
    assert read.numpy() == pytest.approx(7.0, abs=0.5)
