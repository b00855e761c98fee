"""Hand-computed cases of the objectives that VL-GPT uses."""

from __future__ import annotations

import math

import pytest
import torch

from tessera.objectives.next_token import next_token
from tessera.objectives.regression import regression
from tessera.objectives.routing import route
from tessera.objectives.tally import Tally


def test_next_token_is_the_sum_of_negative_log_probabilities():
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]))
    total, number = next_token(logits, torch.tensor([0, 2]))
    assert number == 2 and total.item() == pytest.approx(-math.log(0.5) - math.log(0.8), rel=1e-6)


def test_regression_averages_over_channels_and_sums_over_items():
    predicted, target = torch.tensor([[1.0, 3.0], [0.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 2.0]])
    total, number = regression(predicted, target)
    assert number == 2 and total.item() == pytest.approx((1 + 4) / 2 + 4 / 2)


def test_regression_gives_its_target_no_gradient_and_never_broadcasts():
    predicted, target = torch.zeros(2, 3, requires_grad=True), torch.ones(2, 3, requires_grad=True)
    regression(predicted, target).total.backward()
    assert target.grad is None and predicted.grad is not None
    with pytest.raises(ValueError, match="onto a target of shape"):
        regression(predicted, torch.ones(1, 3))


def test_objectives_over_no_targets_are_zero_and_still_reach_their_weights():
    head = torch.nn.Linear(3, 3)
    none = head(torch.zeros(0, 3))
    for tally in (regression(none, torch.zeros(0, 3)), next_token(none, torch.zeros(0, dtype=torch.long))):
        assert tally.number == 0 and tally.mean().item() == 0
        head.weight.grad = None
        tally.mean().backward(retain_graph=True)
        assert head.weight.grad is not None and not head.weight.grad.any()


@pytest.mark.parametrize("count", [8, torch.tensor(8)])
def test_a_tally_divides_by_the_count_of_the_whole_step(count):
    assert Tally(torch.tensor(4.0), 2).mean().item() == 2
    assert Tally(torch.tensor(4.0), 2).mean(count).item() == 0.5
    assert Tally(torch.tensor(0.0), 0).mean(count * 0).item() == 0


def test_steps_are_routed_by_what_comes_next():
    # <s> [IMG] v v [/IMG] word | a second sequence | padding
    labels = torch.tensor([[-100, 3, -100, -100, 4, 9, -100, 8, -100, -100]])
    visual = torch.tensor([[0, 0, 1, 1, 0, 0, 0, 0, 0, 0]], dtype=torch.bool)
    segments = torch.tensor([[1, 1, 1, 1, 1, 1, 2, 2, 0, 0]])
    text, regress = route(labels, visual, segments)
    assert text.int().tolist() == [[1, 0, 0, 1, 1, 0, 1, 0, 0]]
    assert regress.int().tolist() == [[0, 1, 1, 0, 0, 0, 0, 0, 0]]


def test_the_first_position_of_a_sequence_is_never_a_target():
    labels, segments = torch.tensor([[5, 6, 7, 8]]), torch.tensor([[1, 1, 2, 2]])
    assert route(labels, None, segments).text.int().tolist() == [[1, 0, 1]]
    assert route(labels, None, None).text.int().tolist() == [[1, 1, 1]]
