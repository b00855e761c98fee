"""Optimisers: the schedule by hand, Muon against its definition, groups, averages."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tessera.errors import UserError
from tessera.train.optim import Average, Muon, Optimiser, orthogonalise, split_for_muon
from tests.train.tiny import tiny_model


def test_the_rate_climbs_then_falls_along_half_a_cosine_to_its_floor():
    settings = Optimiser(warmup=0.2, floor=0.1)
    rates = [settings.rate(step, 10) for step in range(11)]
    assert rates[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert rates[6] == pytest.approx(0.1 + 0.9 * 0.5)
    assert rates[10] == pytest.approx(0.1)
    assert rates[2:] == sorted(rates[2:], reverse=True)


def test_orthogonalised_matrices_have_singular_values_near_one():
    matrices = torch.randn(3, 12, 7, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(matrices))
    assert 0.6 < float(values.min()) < float(values.max()) < 1.3


def test_a_step_of_muon_is_orthogonalised_momentum_for_matrices_and_kernels():
    draws = torch.Generator().manual_seed(0)
    matrix = nn.Parameter(torch.randn(6, 4, generator=draws))
    kernel = nn.Parameter(torch.randn(8, 3, 2, 2, generator=draws))
    start = [matrix.detach().clone(), kernel.detach().clone()]
    optimiser = Muon([matrix, kernel], lr=0.1, weight_decay=0.5)
    for parameter in (matrix, kernel):
        parameter.grad = torch.randn(parameter.shape, generator=draws)
    optimiser.step()
    for before, parameter in zip(start, (matrix, kernel), strict=True):
        flat = parameter.grad.flatten(1)
        update = orthogonalise(flat.lerp(0.05 * flat, 0.95)[None])[0]
        scale = 0.1 * math.sqrt(max(1.0, flat.shape[0] / flat.shape[1]))
        expected = before * (1 - 0.05) - scale * update.view_as(before)
        assert torch.allclose(parameter, expected, atol=1e-6)


def test_muon_takes_hidden_matrices_and_adamw_the_rest():
    model = nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 5))
    model[3].no_muon = True
    hidden, rest = split_for_muon(model)
    assert [id(p) for p in hidden] == [id(model[1].weight)]
    assert len(rest) == 6
    built = Optimiser(kind="muon").build(model)
    held = [p for one in built for group in one.param_groups for p in group["params"]]
    assert sorted(map(id, held)) == sorted(map(id, model.parameters()))


def test_a_vector_in_the_shape_of_a_matrix_is_none():
    model = nn.Linear(8, 8)
    model.class_token = nn.Parameter(torch.zeros(1, 1, 8))
    assert [id(p) for p in split_for_muon(model)[0]] == [id(model.weight)]
    (adamw,) = Optimiser(kind="adamw", weight_decay=0.1).build(model)
    decays = {id(p): group["weight_decay"] for group in adamw.param_groups for p in group["params"]}
    assert [decays[id(p)] for p in (model.weight, model.class_token, model.bias)] == [0.1, 0.0, 0.0]


def test_vectors_do_not_decay_and_factors_scale_the_rate():
    model = tiny_model()
    (adamw,) = Optimiser(lr=0.1, weight_decay=0.3, factors={"0.*": 0.5}).build(model)
    found = {
        id(p): (group["initial_lr"], group["weight_decay"]) for group in adamw.param_groups for p in group["params"]
    }
    assert found[id(model[0].weight)] == (0.05, 0.3)
    assert found[id(model[0].bias)] == (0.05, 0.0)
    assert found[id(model[3].weight)] == (0.1, 0.3)


def test_frozen_parameters_are_in_no_optimiser():
    model = tiny_model()
    model[0].requires_grad_(False)
    for kind in ("adamw", "muon"):
        held = {id(p) for one in Optimiser(kind=kind).build(model) for g in one.param_groups for p in g["params"]}
        assert held == {id(p) for p in model.parameters() if p.requires_grad}


def test_an_average_moves_by_the_rest_of_its_decay_and_comes_back_from_its_tensors():
    model = tiny_model()
    average = Average(model, 0.9)
    before = average.whole()
    with torch.no_grad():
        model[0].weight.add_(1.0)
    average.update(model)
    assert torch.allclose(average.weights["0.weight"], before["0.weight"] + 0.1)
    average.load(before)
    assert torch.equal(average.weights["0.weight"], before["0.weight"])


def test_sgd_moves_by_gradient_and_decay_gathered_in_momentum():
    vector = nn.Module()
    vector.weight = nn.Parameter(torch.tensor([2.0, -1.0]))
    (built,) = Optimiser(kind="sgd", lr=0.1, betas=(0.9, 0.0), weight_decay=0.5).build(vector)
    velocity, value = torch.zeros(2), torch.tensor([2.0, -1.0])
    for gradient in (torch.tensor([1.0, 0.0]), torch.tensor([0.0, 3.0])):
        vector.weight.grad = gradient
        built.step()
        velocity = 0.9 * velocity + gradient + 0.5 * value
        value = value - 0.1 * velocity
        torch.testing.assert_close(vector.weight.detach(), value)


def test_unknown_kinds_and_shares_are_refused():
    with pytest.raises(UserError, match="unknown optimiser 'lion'"):
        Optimiser(kind="lion")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="not 100"):
        Optimiser(warmup=100)
