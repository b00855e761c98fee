"""Losses of pictures: the likelihood of pixels, the distance that a network sees, the game against a critic."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tessera.errors import UserError
from tessera.layers.stylegan import Discriminator, EqualLinear, halve, spread
from tessera.objectives.adversarial import fooling, frozen_scores, slope, telling
from tessera.objectives.logit_laplace import MARGIN, expected, logit_laplace, squeeze
from tessera.objectives.perceptual import Perceptual
from tessera.vision.registry import create


@pytest.mark.light("vit-vqgan", "exact")
@pytest.mark.parametrize(("mean", "log_scale"), [(0.0, 0.0), (1.5, -1.0), (-0.7, 0.4)])
def test_the_logit_laplace_density_integrates_to_one(mean: float, log_scale: float) -> None:
    # Over the logit u of x, with dx = x (1 - x) du; beyond |u| = 9 lies less than 0.003 of the mass.
    u = torch.linspace(-9, 9, 721)
    x = u.sigmoid()
    pixels = (x - MARGIN) / (1 - 2 * MARGIN)
    centre, spread_ = torch.tensor(mean), torch.tensor(log_scale)
    density = torch.stack([(-logit_laplace(centre, spread_, pixel).total).exp() for pixel in pixels])
    assert float(torch.trapezoid(density * x * (1 - x), u)) == pytest.approx(1, abs=5e-3)


def test_the_expected_pixel_undoes_the_squeeze_and_shapes_are_never_broadcast() -> None:
    pixels = torch.rand(2, 3, 4, 4)
    torch.testing.assert_close(expected(torch.logit(squeeze(pixels))), pixels)
    with pytest.raises(ValueError, match="are of the shapes"):
        logit_laplace(pixels, pixels[:, :1], pixels)
    loss = logit_laplace(pixels, torch.zeros_like(pixels), pixels)
    assert loss.number == pixels.numel()


def test_pictures_look_alike_to_themselves_and_the_gradient_goes_to_the_restored_one() -> None:
    torch.manual_seed(0)
    eyes = create("vit-mini", num_hidden_layers=2, hidden_size=16, num_attention_heads=2)
    loss = Perceptual(eyes, (0.5,) * 3, (0.5,) * 3).train()
    ours, theirs = (torch.rand(2, 3, 32, 32).requires_grad_(True) for _ in range(2))
    assert not eyes.training and not any(one.requires_grad for one in eyes.parameters())
    torch.testing.assert_close(loss(ours, ours).total, torch.tensor(0.0))
    found = loss(ours, theirs)
    found.total.backward()
    assert found.number == 2 and ours.grad is not None and ours.grad.abs().sum() > 0
    assert theirs.grad is None
    first = Perceptual(eyes, (0.5,) * 3, (0.5,) * 3, blocks=[0])(ours, theirs)
    seen = [eyes(one * 2 - 1, output_hidden_states=True).hidden_states[0] for one in (ours, theirs)]
    states = [F.normalize(one, dim=-1) for one in seen]
    torch.testing.assert_close(first.total, (states[0] - states[1]).square().sum(-1).mean(1).sum())


def test_each_player_moves_what_is_its_own() -> None:
    torch.manual_seed(0)
    critic, made = Discriminator(8, channels=4), torch.rand(2, 3, 8, 8, requires_grad=True)
    fooling(frozen_scores(critic, made)).total.backward()
    assert made.grad is not None and made.grad.abs().sum() > 0
    assert all(one.grad is None for one in critic.parameters())
    torch.testing.assert_close(frozen_scores(critic, made), critic(made))
    loss = telling(critic(torch.rand(2, 3, 8, 8)), critic(made.detach()))
    loss.total.backward()
    assert loss.number == 2 and all(one.grad is not None for one in critic.parameters())
    zeros = torch.zeros(3)
    torch.testing.assert_close(telling(zeros, zeros).mean(), torch.tensor(2 * math.log(2)))
    torch.testing.assert_close(fooling(zeros).mean(), torch.tensor(math.log(2)))


def test_the_slope_of_a_linear_critic_is_its_weights_length() -> None:
    critic = nn.Sequential(nn.Flatten(), nn.Linear(12, 1))
    pictures = torch.rand(5, 3, 2, 2)
    found = slope(critic, pictures)
    torch.testing.assert_close(found.mean(), critic[1].weight.square().sum() / 2)
    found.total.backward()
    torch.testing.assert_close(critic[1].weight.grad, 5 * critic[1].weight)
    assert not pictures.requires_grad


def test_a_critic_halves_pictures_down_to_one_score_and_sees_whether_they_differ() -> None:
    critic = Discriminator(32, channels=4)
    assert critic(torch.rand(6, 3, 32, 32)).shape == (6,)
    flat = torch.full((1, 2, 8, 8), 3.0)
    torch.testing.assert_close(halve(flat)[:, :, 1:-1, 1:-1], flat[:, :, :2, :2])
    same = torch.rand(1, 2, 4, 4).expand(4, -1, -1, -1)
    assert spread(same).shape == (4, 3, 4, 4)
    assert spread(same)[:, 2].max() < 1e-3 < spread(torch.rand(4, 2, 4, 4))[:, 2].min()
    linear = EqualLinear(100, 50)
    assert float(linear(torch.randn(200, 100)).std().detach()) == pytest.approx(1, abs=0.1)
    with pytest.raises(UserError, match="not 48"):
        Discriminator(48)
