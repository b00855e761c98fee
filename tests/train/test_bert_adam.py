"""BERT's Adam: its first step and schedule by hand, and a resumed run of it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tessera.train.bert_adam import BertAdam
from tessera.train.optim import Optimiser


@pytest.mark.light("lxmert", "exact")
def test_the_first_step_is_uncorrected_and_decays_every_weight() -> None:
    torch.manual_seed(0)
    weight, bias = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(4))
    before = [weight.detach().clone(), bias.detach().clone()]
    for parameter in (weight, bias):
        parameter.grad = torch.randn(parameter.shape)
    BertAdam([weight, bias], lr=1e-2).step()
    for old, parameter in zip(before, (weight, bias), strict=True):
        grad = parameter.grad
        expected = old - 1e-2 * (0.1 * grad / (math.sqrt(0.001) * grad.abs() + 1e-6) + 0.01 * old)
        torch.testing.assert_close(parameter.detach(), expected, atol=1e-7, rtol=1e-5)
        moved = (old * (1 - 1e-4) - parameter.detach()).abs() / 1e-2
        assert torch.allclose(moved, torch.full_like(moved, 3.162), atol=1e-2)  # Adam: 1


def test_many_steps_equal_the_formula() -> None:
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.randn(5))
    value, mean, square = parameter.detach().clone(), torch.zeros(5), torch.zeros(5)
    optimiser = BertAdam([parameter], lr=0.1, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.5)
    for _ in range(7):
        parameter.grad = torch.randn(5)
        mean = 0.8 * mean + 0.2 * parameter.grad
        square = 0.9 * square + 0.1 * parameter.grad**2
        value = value - 0.1 * (mean / (square.sqrt() + 1e-3) + 0.5 * value)
        optimiser.step()
    torch.testing.assert_close(parameter.detach(), value)


def test_the_rate_starts_at_zero_and_falls_along_a_line() -> None:
    settings = Optimiser(kind="bertadam", warmup=0.2)
    assert [settings.rate(step, 10) for step in (0, 1, 2, 6, 10)] == pytest.approx([0, 0.5, 1, 0.5, 0])
    assert Optimiser(kind="bertadam", warmup=0.0).rate(5, 10) == pytest.approx(0.5)


def test_norms_and_biases_decay_too() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    (built,) = Optimiser(kind="bertadam", lr=1e-3, weight_decay=0.01).build(model)
    assert isinstance(built, BertAdam)
    assert [(len(group["params"]), group["weight_decay"]) for group in built.param_groups] == [(4, 0.01)]
