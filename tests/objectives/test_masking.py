"""What masked prediction hides, and the losses over detections and answers, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tessera.objectives.answers import draw_answer, soft_answers
from tessera.objectives.detections import detected_labels, hidden_features
from tessera.objectives.masking import EXCHANGED, KEPT, NOT_CHOSEN, ZEROED, hide_regions, mask_regions, mask_words


def test_a_word_is_asked_for_where_it_is_chosen_and_four_fifths_of_those_are_hidden() -> None:
    ids = np.arange(10, 20_010)
    shown, labels = mask_words(ids, mask_id=3, vocabulary=50_000, rng=np.random.default_rng(0))
    asked = labels != -100
    assert (labels[asked] == ids[asked]).all() and (shown[~asked] == ids[~asked]).all()
    assert asked.mean() == pytest.approx(0.15, abs=0.01)
    assert (shown[asked] == 3).mean() == pytest.approx(0.8, abs=0.03)
    assert (shown[asked] == ids[asked]).mean() == pytest.approx(0.1, abs=0.02)
    assert ids[0] == 10  # the caller's array is as it was


def test_regions_are_zeroed_exchanged_or_kept_in_the_same_shares() -> None:
    fates, draws = mask_regions(20_000, np.random.default_rng(0), rate=0.5)
    shares = {fate: (fates == fate).mean() for fate in (NOT_CHOSEN, ZEROED, EXCHANGED, KEPT)}
    assert shares == pytest.approx({NOT_CHOSEN: 0.5, ZEROED: 0.4, EXCHANGED: 0.05, KEPT: 0.05}, abs=0.015)
    assert 0 <= draws.min() <= draws.max() < 1


def test_a_rate_of_one_chooses_everything_and_of_zero_nothing() -> None:
    rng = np.random.default_rng(0)
    assert (mask_regions(100, rng, rate=1.0)[0] != NOT_CHOSEN).all()
    assert (mask_words(np.arange(100), 1, 9, rng, rate=1e-9)[1] == -100).all()


def test_stand_ins_come_from_other_pictures_and_never_from_padding() -> None:
    valid = torch.tensor([[True, True, False], [True, False, False], [True, True, True]])
    number = torch.arange(9.0).view(3, 3)
    features = torch.where(valid, number, -1.0)[..., None].repeat(1, 1, 2)
    fates = torch.full((3, 3), EXCHANGED)
    found = [hide_regions(features, fates, torch.full((3, 3), draw), valid)[..., 0] for draw in np.arange(0, 1, 0.05)]
    for picture in range(3):
        others = {int(x) for x in number[valid] if not 3 * picture <= x < 3 * picture + 3}
        assert {int(x) for one in found for x in one[picture]} == others


def test_hiding_zeroes_what_is_to_be_zeroed_and_leaves_the_rest() -> None:
    features, valid = torch.ones(2, 3, 4), torch.ones(2, 3, dtype=torch.bool)
    fates = torch.tensor([[ZEROED, KEPT, NOT_CHOSEN], [NOT_CHOSEN, ZEROED, KEPT]])
    found = hide_regions(features, fates, torch.zeros(2, 3), valid)
    assert torch.equal(found.mean(-1), torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0]]))
    alone = hide_regions(features[:1], torch.full((1, 3), EXCHANGED), torch.zeros(1, 3), valid[:1])
    assert not alone.any()  # no other picture: zeros stand in


def test_features_count_where_they_were_hidden_and_labels_by_confidence() -> None:
    total, number = hidden_features(torch.tensor([[0.5, 3.0], [9.0, 9.0]]), torch.zeros(2, 2), torch.tensor([1, 0]))
    assert number == 2 and total.item() == pytest.approx((0.125 + 2.5) / 2)
    total, number = detected_labels(torch.zeros(3, 4), torch.tensor([0, 1, 2]), torch.tensor([1.0, 0.5, 0.0]))
    assert number == 3 and total.item() == pytest.approx(1.5 * math.log(4), rel=1e-6)


def test_answers_are_drawn_in_proportion_to_their_scores() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_answer({3: 0.9, 7: 0.3, 8: 0.0}, rng) for _ in range(2000)]
    assert set(drawn) == {3, 7} and drawn.count(3) / 2000 == pytest.approx(0.75, abs=0.03)
    assert draw_answer({}, rng) is None and draw_answer({1: 0.0}, rng) is None


def test_soft_answers_sum_over_answers() -> None:
    total, number = soft_answers(torch.zeros(2, 5), torch.rand(2, 5, generator=torch.Generator().manual_seed(0)))
    assert number == 2 and total.item() == pytest.approx(10 * math.log(2), rel=1e-6)
