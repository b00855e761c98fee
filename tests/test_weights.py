"""Weights that do not fit are refused with the first names that differ."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from tessera.errors import CheckpointError
from tessera.weights import load_state


def stack(*widths: int) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False)))


def test_a_state_that_fits_is_loaded_whole():
    ours, theirs = stack(2, 3, 4), stack(2, 3, 4)
    load_state(ours, theirs.state_dict(), "a file")
    x = torch.randn(5, 2)
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize(
    ("widths", "sentence"),
    [
        ((2, 3), "2 missing (1.bias, 1.weight), 0 unexpected, 0 of another shape"),
        ((2, 3, 4, 5), "0 missing, 2 unexpected (2.bias, 2.weight), 0 of another shape"),
        ((2, 3, 5), "2 of another shape (1.bias [5] for [4], 1.weight [5, 3] for [4, 3])"),
    ],
)
def test_a_state_of_another_architecture_is_refused_and_nothing_is_loaded(widths, sentence):
    model = stack(2, 3, 4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=re.escape(sentence)) as caught:
        load_state(model, stack(*widths).state_dict(), "a file")
    assert str(caught.value).startswith("a file does not hold the weights of a Sequential")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_five_names_are_shown_in_all_taken_from_each_list():
    others = {f"other.{place}": torch.zeros(1) for place in range(9)}
    with pytest.raises(CheckpointError) as caught:
        load_state(stack(*[2] * 5), others, "a file")
    assert str(caught.value).endswith(
        "8 missing (0.bias, 0.weight, 1.bias, ...), 9 unexpected (other.0, other.1, ...), 0 of another shape"
    )
