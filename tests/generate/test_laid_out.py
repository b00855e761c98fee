"""Layers laid out for generation give the states of the layers that they are made of."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tessera.generate.cached import CachedDecoder
from tessera.generate.interleaved import generate
from tessera.generate.laid_out import laid_out
from tessera.generate.reply import Prompt
from tests.models.vlgpt_tiny import BEGIN, START, D, N, text_config, tiny_model, words


def llama(**fields):
    """A language model whose norms, too, have weights of their own."""
    model = tiny_model(text=text_config(**fields)).eval().language_model.model
    generator = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        if "norm" in name:
            weight.data.uniform_(0.5, 2.0, generator=generator)
        elif weight.dim() > 1:
            weight.data.mul_(6)
    return model


def states(model, x, chunk):
    """Hidden states [B, L, d] of x, `chunk` positions at a time over the cache."""
    decoder = CachedDecoder(model, len(x), x.shape[1])
    places = torch.arange(x.shape[1]).expand(len(x), -1)
    return torch.cat(
        [decoder.run(*(one[:, i : i + chunk] for one in (x, places))) for i in range(0, x.shape[1], chunk)], 1
    )


@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize("chunk", [1, 3, 7])
@torch.no_grad()
def test_states_equal_those_of_transformers_whatever_the_norms_and_the_groups(groups, chunk):
    model, x = llama(num_key_value_heads=groups), torch.randn(2, 7, D, generator=torch.Generator().manual_seed(0))
    assert laid_out(model) is not None
    torch.testing.assert_close(states(model, x, chunk), model(inputs_embeds=x).last_hidden_state, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_what_is_read_is_left_as_it_was():
    model, x = llama(), torch.randn(2, 4, D)
    before = x.clone()
    states(model, x, 4)
    assert torch.equal(x, before)


@torch.no_grad()
def test_weights_that_change_are_laid_out_anew_and_others_are_not():
    model, x = llama(), torch.randn(1, 4, D)
    first = laid_out(model)
    assert laid_out(model) is first
    model.layers[0].mlp.down_proj.weight.mul_(2)
    second = laid_out(model)
    assert second is not first
    model.layers[1].self_attn.q_proj.weight.data.mul_(2)  # which counts as no change of the parameter
    assert laid_out(model) is not second
    torch.testing.assert_close(states(model, x, 2), model(inputs_embeds=x).last_hidden_state, atol=1e-5, rtol=1e-5)
    again = laid_out(model)
    model.norm.weight = nn.Parameter(model.norm.weight * 2)  # another tensor in its place
    assert laid_out(model) is not again


def test_a_model_that_is_more_than_its_configuration_says_is_run_as_it_is(monkeypatch):
    model = llama()
    assert laid_out(copy.deepcopy(model).bfloat16()) is None
    assert laid_out(llama(attention_bias=True)) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert laid_out(model) is None
    hooked = copy.deepcopy(model)
    hooked.layers[0].mlp.register_forward_hook(lambda *_: None)
    assert laid_out(hooked) is None
    wrapped = copy.deepcopy(model)
    wrapped.layers[0].mlp.up_proj = nn.Sequential(wrapped.layers[0].mlp.up_proj, nn.Linear(48, 48))
    assert laid_out(wrapped) is None
    monkeypatch.setattr("tessera.generate.laid_out.LARGEST", 1000)
    assert laid_out(model) is None


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_picture_whose_inputs_are_known_beforehand_is_read_in_one_pass(dropout, monkeypatch):
    model, lengths, run = tiny_model(visual_input_dropout=dropout).eval(), [], CachedDecoder.run

    def heard(self, embeds, *arguments):
        lengths.append(embeds.shape[1])
        return run(self, embeds, *arguments)

    monkeypatch.setattr(CachedDecoder, "run", heard)
    replies = generate(model, [Prompt([BEGIN, *words(3), START])] * 2, max_new_tokens=0)
    assert [len(reply.pictures[0]) for reply in replies] == [N, N]
    assert lengths == ([5, N - 1] if dropout else [5, *[1] * (N - 1)])


@pytest.mark.parametrize("side", ["none", "left", "right"])
@pytest.mark.parametrize("laid", [True, False])
@torch.no_grad()
def test_last_states_alone_are_those_among_all(side, laid, monkeypatch):
    model, x = llama(num_key_value_heads=2), torch.randn(3, 7, D, generator=torch.Generator().manual_seed(0))
    if not laid:
        monkeypatch.setattr("tessera.generate.laid_out.LARGEST", 0)
    index, lengths = torch.arange(7), torch.tensor([7, 4, 2])
    readable = {
        "none": torch.ones(3, 7, dtype=torch.bool),
        "left": index >= 7 - lengths[:, None],
        "right": index < lengths[:, None],
    }[side]
    places = (readable.long().cumsum(1) - 1).clamp_min(0)
    last = lengths - 1 if side == "right" else torch.full((3,), 6)
    all_states = CachedDecoder(model, 3, 8)
    few = CachedDecoder(model, 3, 8)
    assert (few.laid is not None) == laid
    states = all_states.run(x, places, readable)[torch.arange(3), last]
    torch.testing.assert_close(few.run(x, places, readable, last)[:, 0], states, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(few.cache[..., :7, :], all_states.cache[..., :7, :])
