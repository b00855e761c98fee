"""Backbones by name, and what all of them share."""

from __future__ import annotations

import pytest
import torch

from tessera.errors import UserError
from tessera.vision import registry
from tessera.vision.base import whole_tiles
from tests.vision.tiny_backbone import VARIANTS, Tiny


@pytest.fixture(autouse=True)
def tiny_variants(monkeypatch):
    monkeypatch.setattr(registry, "_factories", dict(registry._factories))
    for name, factory in VARIANTS.items():
        registry.register(name, factory)


def test_a_name_gives_its_configuration_and_changes_override_it():
    assert registry.config("tiny-wide").hidden_size == 24
    assert registry.config("tiny-wide", hidden_size=36).hidden_size == 36
    assert {"tiny", "tiny-wide"} <= set(registry.names())
    assert registry.names() == sorted(registry.names())


def test_a_created_backbone_says_its_grid_and_width():
    model = registry.create("tiny", patch_size=4)
    assert isinstance(model, Tiny)
    out = model(torch.zeros(2, 3, 16, 24), output_hidden_states=True)
    assert out.grid == model.grid_of(16, 24) == (4, 6)
    assert out.tokens.shape == (2, 24, model.width)
    assert out.pooled.shape == (2, model.width)
    assert [state.shape for state in out.hidden_states] == [(2, 24, 12)]


def test_an_unknown_name_or_field_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="'tinny'.*did you mean 'tiny'"):
        registry.config("tinny")
    with pytest.raises(UserError, match="'hiden_size'; did you mean 'hidden_size'"):
        registry.config("tiny", hiden_size=3)


@pytest.mark.parametrize(("value", "sentence"), [(0, "patch_size is 0"), ("x", "tiny cannot be built so.*patch_size")])
def test_a_value_that_makes_no_backbone_is_refused(value, sentence):
    with pytest.raises(UserError, match=sentence):
        registry.config("tiny", patch_size=value)


def test_a_size_that_cannot_be_tiled_names_sizes_that_can():
    assert whole_tiles(32, 48, 16) == (2, 3)
    for height, width, near in ((30, 48, "32 x 48"), (3, 100, "16 x 96")):
        with pytest.raises(UserError, match=f"{height} x {width}.*multiples of 16.*{near}"):
            whole_tiles(height, width, 16)


def test_a_backbone_saves_and_loads(tmp_path):
    model = registry.create("tiny")
    model.save_pretrained(tmp_path)
    again = Tiny.from_pretrained(tmp_path)
    pictures = torch.randn(1, 3, 16, 16)
    assert torch.equal(model.eval()(pictures).tokens, again(pictures).tokens)
