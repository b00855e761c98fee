"""Cross-entropy of classes and mixtures of pictures."""

from __future__ import annotations

import math

import pytest
import torch

from tessera.errors import UserError
from tessera.objectives.classification import Mixing, class_cross_entropy


def test_cross_entropy_by_hand_with_hard_soft_and_smoothed_targets():
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]])
    hard = class_cross_entropy(logits, torch.tensor([1, 0]))
    assert (hard.total.item(), hard.number) == (pytest.approx(math.log(4 / 3) + math.log(2)), 2)
    soft = class_cross_entropy(logits, torch.tensor([[0.5, 0.5], [1.0, 0.0]])).total.item()
    assert soft == pytest.approx(0.5 * math.log(4) + 0.5 * math.log(4 / 3) + math.log(2))
    smoothed = class_cross_entropy(logits[:1], torch.tensor([1]), smoothing=0.2).total.item()
    assert smoothed == pytest.approx(0.9 * math.log(4 / 3) + 0.1 * math.log(4))


def pictures():
    """Four pictures, each of its own number."""
    return torch.arange(4.0)[:, None, None, None].expand(4, 3, 8, 10).contiguous()


@pytest.mark.parametrize("mixing", [Mixing(mixup=0.8, cutmix=0), Mixing(mixup=0, cutmix=1.0)])
def test_a_mixed_picture_holds_its_pair_in_the_share_that_its_target_says(mixing):
    labels = torch.tensor([0, 1, 2, 0])
    kept = set()
    for seed in range(20):
        torch.manual_seed(seed)
        given = pictures()
        mixed, shares = mixing(given, labels, 3)
        assert torch.equal(given, pictures())
        torch.testing.assert_close(shares.sum(1), torch.ones(4))
        own = shares[1, 1].item()  # pictures 1 and 2 are a pair, of classes 1 and 2
        kept.add(round(own, 4))
        assert shares[1, 2].item() == pytest.approx(1 - own, abs=1e-6)
        assert shares[0].tolist() == pytest.approx([1.0, 0.0, 0.0])  # 0 and 3 are of one class
        assert mixed[1].mean().item() == pytest.approx(1 + (1 - own), abs=1e-4)
        if mixing.cutmix:
            assert set(mixed.unique().tolist()) <= {0.0, 1.0, 2.0, 3.0}
    assert len(kept) > 10


def test_nothing_is_mixed_at_chance_0():
    mixed, shares = Mixing(chance=0.0)(pictures(), torch.tensor([0, 1, 2, 0]), 3)
    assert torch.equal(mixed, pictures())
    assert shares.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]]


def test_the_same_seed_mixes_alike():
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        found.append(Mixing()(pictures(), torch.tensor([0, 1, 2, 0]), 3))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("values", [{"mixup": 0, "cutmix": 0}, {"mixup": -1}, {"chance": 1.5}])
def test_mixing_that_is_none_is_refused(values):
    with pytest.raises(UserError):
        Mixing(**values)
