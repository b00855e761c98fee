"""The start in which a language model reads and writes pictures where it has read and written sketches."""

from __future__ import annotations

import pytest
import torch

from tessera.data.worlds import open_world
from tessera.errors import UserError
from tessera.layers.mlp import Mlp
from tessera.zoo.reading import sketchable, start_connector, start_reading
from tessera.zoo.sketches import PLACES, WORDS
from tests.models.vlgpt_tiny import D, tiny_model, tokenizer_config

SLOT_TOKEN = 5
HIDDEN = {"visual_input_dropout": 1.0, "visual_projector": "mlp", "regression_head": "residual"}


def model_of(**fields):
    return tiny_model(tokenizer=tokenizer_config(num_embeddings=PLACES), **HIDDEN | fields)


def sketches_and_embeds(count=2000, seed=0):
    """Random sketches [M, Q, W], and embeddings [M, Q, D] of which they are a linear image."""
    generator = torch.Generator().manual_seed(seed)
    told = torch.rand(count, PLACES, len(WORDS), generator=generator).softmax(-1)
    told = told / told.sum(-1, keepdim=True)
    maps = torch.randn(len(WORDS), D, generator=torch.Generator().manual_seed(99))
    return told, (told - told.mean((0, 1))) @ maps * 4


def test_the_projector_gives_the_mean_of_a_sketchs_words_and_masks_what_stood_for_hidden_ones():
    model = model_of()
    told, embeds = sketches_and_embeds()
    ids = torch.arange(6, 6 + len(WORDS))
    start_reading(model, embeds[:1900], told[:1900], ids, SLOT_TOKEN)
    table = model.get_input_embeddings().weight
    wanted, middle = told[1900:] @ table[ids], told[:1900].mean(0) @ table[ids]
    error = (model.read_embeds(embeds[1900:]) - wanted).square().mean()
    assert error < 0.1 * (wanted - middle).square().mean()
    assert torch.equal(model.visual_mask.weight, table[SLOT_TOKEN].expand(PLACES, D))


def test_the_start_is_the_same_each_time_whatever_was_drawn_before():
    told, embeds = sketches_and_embeds(64)
    ids = torch.arange(6, 6 + len(WORDS))
    found = []
    for seed in (1, 2):
        model = model_of()
        torch.manual_seed(seed)
        start_reading(model, embeds, told, ids, SLOT_TOKEN)
        found.append(model.visual_projector.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_only_scenes_are_told_as_sketches_and_without_any_those_of_the_embedded_world():
    source = open_world("scenes").source("pairs")
    scene = source[7].images[0]
    drawn = scene.__class__(scene.pil())
    assert sketchable([drawn, scene], 3) == [scene]
    assert [image.key for image in sketchable([drawn], 3)] == [source[index].images[0].key for index in range(3)]


@pytest.mark.parametrize("fields", [{"visual_projector": "none"}, {"visual_input_dropout": 0.0}])
def test_without_projector_or_masks_it_says_what_to_set(fields):
    told, embeds = sketches_and_embeds(4)
    with pytest.raises(UserError, match="behind a projector, with visual_input_dropout above 0 and 16 embeddings"):
        start_reading(model_of(**fields), embeds, told, torch.arange(6, 6 + len(WORDS)), SLOT_TOKEN)


def test_a_connector_gives_the_mean_of_a_sketchs_words_however_its_channels_are_spread():
    told, _ = sketches_and_embeds(700)
    generator = torch.Generator().manual_seed(5)
    maps, words = (torch.randn(len(WORDS), 64, generator=generator) for _ in range(2))
    even = (told - told.mean((0, 1))) @ maps
    wanted, middle = told[640:] @ words, told[:640].mean((0, 1)) @ words
    given = []
    for states in (even, even * torch.logspace(-2, 2, 64) + 3):
        mlp = Mlp(64, 64)
        start_connector(mlp, states[:640], told[:640], words)
        with torch.no_grad():
            given.append(mlp(states[640:]))
    torch.testing.assert_close(given[1], given[0], rtol=0, atol=0.02 * float(given[0].std()))
    assert (given[1] - wanted).square().mean() < 0.5 * (wanted - middle).square().mean()
