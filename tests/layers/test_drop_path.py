"""Stochastic depth."""

from __future__ import annotations

import pytest
import torch

from tessera.errors import UserError
from tessera.layers.drop_path import DropPath


def test_samples_are_left_out_whole_and_the_rest_is_scaled_to_keep_the_mean() -> None:
    torch.manual_seed(0)
    x = torch.ones(64, 3, 5)
    dropped = DropPath(0.25)(x)
    assert dropped.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert torch.equal(dropped, dropped[:, :1, :1].expand_as(dropped))


def test_evaluation_and_a_rate_of_zero_change_nothing() -> None:
    x = torch.randn(4, 3)
    assert DropPath(0.5).eval()(x) is x
    assert DropPath(0.0)(x) is x


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_a_rate_that_is_none_is_refused(rate: float) -> None:
    with pytest.raises(UserError, match="rate is in"):
        DropPath(rate)
