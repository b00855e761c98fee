"""Identities of the Tokens-to-Token module and its layers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tessera.vision.t2t_tokens import (
    ConvolutionTokens,
    PerformerTokens,
    TokensToToken,
    TransformerTokens,
    cut_widths,
    unfold,
)

SPLITS = ((7, 4, 2), (3, 2, 1), (3, 2, 1))


class FirstChannels(nn.Module):
    """The identity on the first t channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.kept = width

    def forward(self, x):
        return x[..., : self.kept]


@pytest.mark.light("t2t-vit", "exact")
@pytest.mark.parametrize(("split", "channels"), [((7, 4, 2), 3), ((3, 2, 1), 8), ((16, 16, 0), 3)])
def test_a_soft_split_and_a_projection_equal_a_convolution_forward_and_backward(split, channels):
    torch.manual_seed(0)
    linear = nn.Linear(channels * split[0] ** 2, 5).double()
    picture = torch.randn(2, channels, 32, 48, dtype=torch.float64, requires_grad=True)
    kernel = linear.weight.view(5, channels, split[0], split[0])
    ours = linear(unfold(picture, split))
    theirs = F.conv2d(picture, kernel, linear.bias, *split[1:]).flatten(2).transpose(1, 2)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    leaves, weigh = (picture, linear.weight, linear.bias), torch.randn_like(ours)
    found = [torch.autograd.grad((out * weigh).sum(), leaves, retain_graph=True) for out in (ours, theirs)]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


@pytest.mark.light("t2t-vit", "exact")
def test_without_its_token_layers_the_module_is_a_linear_map_of_pixels():
    torch.manual_seed(0)
    module = TokensToToken(SPLITS, [FirstChannels(8), FirstChannels(8)], 3, 8, 6).double()
    one, other = torch.randn(2, 1, 3, 64, 32, dtype=torch.float64)
    constant = module(torch.zeros_like(one))
    assert constant.shape == (1, 4 * 2, 6)
    mixed = module(2 * one - 3 * other) - constant
    torch.testing.assert_close(mixed, 2 * (module(one) - constant) - 3 * (module(other) - constant))
    # Of the first window the first 8 values are the top row of red and one more.
    taken = torch.zeros(8, 147, dtype=torch.float64)
    taken[torch.arange(8), torch.arange(8)] = 1
    first = F.conv2d(one, taken.view(8, 3, 7, 7), stride=4, padding=2)
    taken = torch.zeros(8, 72, dtype=torch.float64)
    taken[torch.arange(8), torch.arange(8)] = 1
    second = F.conv2d(first, taken.view(8, 8, 3, 3), stride=2, padding=1)
    last = F.conv2d(second, module.project.weight.view(6, 8, 3, 3), module.project.bias, 2, 1)
    torch.testing.assert_close(module(one), last.flatten(2).transpose(1, 2), atol=1e-12, rtol=0)


def test_a_single_split_is_the_patch_cut_of_a_vit():
    torch.manual_seed(0)
    module = TokensToToken(((8, 8, 0),), [], 3, 64, 6)
    picture = torch.randn(2, 3, 16, 24)
    theirs = F.conv2d(picture, module.project.weight.view(6, 3, 8, 8), module.project.bias, stride=8)
    torch.testing.assert_close(module(picture), theirs.flatten(2).transpose(1, 2), atol=1e-5, rtol=0)


def performer(features=None, width=16):
    torch.manual_seed(0)
    return PerformerTokens(24, width, features).eval()


@pytest.mark.light("t2t-vit", "exact")
def test_performer_weights_are_positive_and_sum_to_one():
    layer = performer()
    k, q = torch.randn(2, 3, 16, 16) * 0.5
    weights = layer.attention(k, q, torch.eye(16).expand(3, 16, 16))
    assert (weights > 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 16), atol=1e-5, rtol=0)


@pytest.mark.light("t2t-vit", "exact")
def test_performer_approaches_unscaled_softmax_attention_as_one_over_the_root_of_its_features():
    torch.manual_seed(0)
    k, q = torch.randn(2, 4, 20, 16, dtype=torch.float64) * 0.25
    v = torch.randn(4, 20, 16, dtype=torch.float64)
    exact = (q @ k.transpose(1, 2)).softmax(-1) @ v
    errors = []
    for number in (64, 512, 4096):
        layer = performer(features=number)
        drawn = []
        for _ in range(20):
            layer.features = torch.randn(number, 16)
            drawn.append((layer.attention(k, q, v) - exact).abs().mean())
        errors.append(torch.stack(drawn).mean().item())
    for more, fewer in zip(errors[1:], errors, strict=False):
        assert fewer / more == pytest.approx(8**0.5, rel=0.25)


def plain_attention(layer, k, q, v):
    """The formula as the official code writes it."""
    phi = [(x @ layer.features.double().T - x.square().sum(-1, keepdim=True) / 2).exp() for x in (k, q)]
    keys, queries = (one / len(layer.features) ** 0.5 for one in phi)
    return queries @ (keys.transpose(1, 2) @ v) / (queries @ keys.sum(1)[:, :, None] + 1e-8)


@pytest.mark.light("t2t-vit", "exact")
@pytest.mark.parametrize("length", [0.1, 1.0, 4.0])  # at 4 the sums are as small as the 1e-8 beside them
def test_performer_attention_equals_its_plain_formula_forward_and_backward(length):
    layer = performer(width=32)
    parts = [torch.randn(2, 20, 32, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    k, q, v = parts[0] * length / 32**0.5, parts[1] * length / 32**0.5, parts[2]
    found = [layer.attention(k, q, v), plain_attention(layer, k, q, v)]
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-4)
    weigh = torch.randn(2, 20, 32, dtype=torch.float64)
    gradients = [torch.autograd.grad((one * weigh).sum(), parts, retain_graph=True) for one in found]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("length", [30.0, 300.0])
def test_performer_attention_stays_finite_where_the_plain_formula_does_not(length):
    layer = performer(width=32)
    k, q, v = (torch.randn(2, 20, 32, requires_grad=True) for _ in range(3))
    layer.attention(k * length, q * length, v).sum().backward()
    assert all(one.grad.isfinite().all() for one in (k, q, v))


def test_random_features_are_orthogonal_rows_of_length_root_m_and_never_train():
    layer = performer(width=64)
    assert layer.features.shape == (32, 64)
    torch.testing.assert_close(layer.features @ layer.features.T, 32 * torch.eye(32), atol=1e-4, rtol=0)
    assert "features" in layer.state_dict()
    assert "features" not in dict(layer.named_parameters())


def test_performer_attention_stays_in_float32_under_autocast():
    layer, parts = performer(), torch.randn(3, 2, 12, 16)
    wanted = layer.attention(*parts)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer.attention(*parts), wanted)


def test_the_transformer_layer_scales_by_its_input_width_and_skips_with_the_values():
    torch.manual_seed(0)
    layer = TransformerTokens(24, 16)
    x = torch.randn(2, 5, 24)
    q, k, v = layer.qkv(layer.norm1(x)).split(16, dim=-1)
    y = v + layer.proj((q @ k.transpose(1, 2) * 24**-0.5).softmax(-1) @ v)
    torch.testing.assert_close(layer(x), y + layer.mlp(layer.norm2(y)))


@pytest.mark.parametrize("dropout", [0.1, 0.0])
def test_only_the_performer_s_dropout_makes_training_differ(dropout):
    torch.manual_seed(0)
    layer = PerformerTokens(24, 16, dropout=dropout)
    x = torch.randn(2, 5, 24)
    assert torch.equal(layer.train()(x), layer.eval()(x)) == (dropout == 0)


def test_a_token_is_cut_channel_by_channel():
    picture = torch.arange(2 * 4 * 4.0).view(1, 2, 4, 4)
    first = unfold(picture, (2, 2, 0))[0, 0]
    assert first.tolist() == [0, 1, 4, 5, 16, 17, 20, 21]
    assert cut_widths(SPLITS, 3, 64) == [147, 576, 576]


def test_convolutions_give_as_many_tokens_as_the_splits_they_stand_for():
    picture = torch.randn(2, 3, 64, 96)
    assert ConvolutionTokens(SPLITS, 3, 8, 6)(picture).shape == (2, 4 * 6, 6)
