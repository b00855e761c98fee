"""How a word is taken from its scores."""

from __future__ import annotations

import pytest
import torch

from tessera.errors import UserError
from tessera.generate.sampling import Sampling, choose

SCORES = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))


def drawn(sampling, scores=SCORES, draws=4000):
    words = choose(scores.expand(draws, -1), sampling, torch.Generator().manual_seed(0))
    return torch.bincount(words, minlength=4) / draws


def test_temperature_zero_takes_the_best_word():
    assert choose(SCORES).tolist() == [0]


def test_draws_follow_the_probabilities():
    torch.testing.assert_close(drawn(Sampling(temperature=1.0)), SCORES.exp()[0], atol=0.03, rtol=0)


def test_top_k_and_top_p_keep_the_best_words_only():
    assert drawn(Sampling(temperature=1.0, top_k=2)).nonzero().flatten().tolist() == [0, 1]
    assert drawn(Sampling(temperature=1.0, top_p=0.75)).nonzero().flatten().tolist() == [0, 1]
    assert drawn(Sampling(temperature=1.0, top_p=0.85)).nonzero().flatten().tolist() == [0, 1, 2]
    assert drawn(Sampling(temperature=1.0, top_p=1e-9)).nonzero().flatten().tolist() == [0]


def test_low_temperature_sharpens_and_barred_words_never_come():
    assert drawn(Sampling(temperature=0.5))[0] > 0.6
    barred = SCORES.clone()
    barred[:, 0] = -torch.inf
    assert drawn(Sampling(temperature=5.0), barred)[0] == 0


def test_the_same_seed_draws_the_same_words():
    assert torch.equal(drawn(Sampling(temperature=2.0)), drawn(Sampling(temperature=2.0)))


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_p": 1.5}, {"top_k": -1}]
)
def test_values_out_of_range_are_told_with_the_value(wrong):
    name, value = next(iter(wrong.items()))
    with pytest.raises(UserError, match=f"{name} is {value}"):
        Sampling(**wrong)


def test_a_draw_without_a_seed_is_refused():
    with pytest.raises(UserError, match="give a generator"):
        choose(SCORES, Sampling(temperature=1.0))
