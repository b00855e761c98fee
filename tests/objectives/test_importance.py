"""Weights of words by what a blind model thinks of them: the limits in which they are next-token prediction, and what
the loss and its gradient are otherwise."""

from __future__ import annotations

import pytest
import torch

from tessera.errors import UserError
from tessera.objectives.importance import Importance
from tessera.objectives.next_token import next_token
from tessera.objectives.prioritised import factors_of, prioritised

K, V = 24, 40
CAPTION = torch.arange(K) % 3  # three captions of eight words, in turn


def drawn(seed=0):
    """Logits [K, V] with gradient, words [K], blind probabilities [K]."""
    torch.manual_seed(seed)
    return torch.randn(K, V, requires_grad=True), torch.randint(V, (K,)), torch.rand(K)


def loss_and_gradient(logits, words, factors):
    logits.grad = None
    total = next_token(logits, words, factors).total
    total.backward()
    return total.detach(), logits.grad.clone()


def written_out(logits, words, blind, caption):
    """The formula of the figure, word by word."""
    loss = 0.0
    for one in caption.unique():
        own = caption == one
        weights = 1 - blind[own]
        chances = logits[own].log_softmax(-1)[torch.arange(int(own.sum())), words[own]]
        loss = loss - (own.sum() * weights / weights.sum() * chances).sum()
    return loss


@pytest.mark.light("prior", "exact")
def test_the_loss_is_the_published_formula_word_by_word() -> None:
    logits, words, blind = drawn()
    found = next_token(logits, words, Importance()(blind, CAPTION)).total
    torch.testing.assert_close(found, written_out(logits, words, blind, CAPTION))


@pytest.mark.light("prior", "exact")
@pytest.mark.parametrize("case", ["alpha 0", "all the same", "all certain"])
def test_weights_that_do_not_differ_are_next_token_prediction_exactly(case: str) -> None:
    logits, words, blind = drawn()
    given = {"all the same": torch.full((K,), 1 / V), "all certain": torch.ones(K)}.get(case, blind)
    factors = Importance(alpha=0.0 if case == "alpha 0" else 1.0)(given, CAPTION)
    assert torch.equal(factors, torch.ones(K))
    weighted = loss_and_gradient(logits, words, factors)
    logits.grad = None
    plain = next_token(logits, words).total
    plain.backward()
    assert torch.equal(weighted[1], logits.grad)
    torch.testing.assert_close(weighted[0], plain.detach(), rtol=1e-6, atol=0)  # the same terms, added in another order


@pytest.mark.light("prior", "exact")
def test_factors_of_a_caption_sum_to_its_words_and_their_mean_is_1() -> None:
    _, _, blind = drawn()
    lengths = torch.tensor([1, 2, 5, 16])
    caption = torch.arange(4).repeat_interleave(lengths)
    factors = Importance(alpha=1.7)(blind, caption)
    sums = torch.zeros(4).index_add(0, caption, factors)
    torch.testing.assert_close(sums, lengths.float(), atol=1e-5, rtol=0)
    assert factors[0] == 1


@pytest.mark.light("prior", "exact")
def test_a_constant_on_all_weights_of_a_caption_changes_nothing() -> None:
    blind = torch.rand(K, generator=torch.Generator().manual_seed(1))
    scale = torch.tensor([0.9, 0.5, 0.01])[CAPTION]
    scaled = Importance(floor=1e-6)(1 - scale * (1 - blind), CAPTION)
    torch.testing.assert_close(scaled, Importance(floor=1e-6)(blind, CAPTION), rtol=1e-4, atol=1e-5)


@pytest.mark.light("prior", "exact")
def test_each_word_s_gradient_is_its_factor_times_that_of_next_token_prediction() -> None:
    logits, words, blind = drawn()
    factors = Importance()(blind, CAPTION)
    _, weighted = loss_and_gradient(logits, words, factors)
    _, plain = loss_and_gradient(logits, words, torch.ones(K))
    torch.testing.assert_close(weighted, factors[:, None] * plain)


@pytest.mark.light("prior", "exact")
def test_no_gradient_reaches_the_reference() -> None:
    logits, words, blind = drawn()
    blind.requires_grad_(True)
    factors = Importance()(blind, CAPTION)
    assert not factors.requires_grad
    next_token(logits, words, factors + 0 * blind).total.backward()
    assert blind.grad is None


@pytest.mark.light("prior", "exact")
def test_the_difference_to_next_token_prediction_is_the_covariance_of_weights_and_losses() -> None:
    logits, words, blind = drawn()
    terms = prioritised(logits, words, Importance()(blind, CAPTION))
    losses = -logits.detach().log_softmax(-1)[torch.arange(K), words]
    expected = 0.0
    for one in range(3):
        own = one == CAPTION
        weights, lost = 1 - blind[own], losses[own]
        covariance = (weights * lost).mean() - weights.mean() * lost.mean()
        expected += own.sum() * covariance / weights.mean()
    torch.testing.assert_close(terms["covariance"][0], expected, rtol=1e-4, atol=1e-5)
    change = terms["words"][0].detach() - terms["unweighted"][0]
    torch.testing.assert_close(change, terms["covariance"][0], rtol=1e-4, atol=1e-4)
    assert {name: term[1] for name, term in terms.items()} == dict.fromkeys(terms, K)
    assert (terms["unweighted"][2], terms["covariance"][2]) == (0.0, 0.0)


def test_one_unpredictable_word_among_certain_ones_takes_all_and_a_clip_bounds_it() -> None:
    blind = torch.ones(30)
    blind[7] = 0.0
    caption = torch.zeros(30).long()
    assert Importance()(blind, caption)[7] == pytest.approx(30 / 1.029)
    clipped = Importance(clip=10)(blind, caption)
    assert clipped.max() == 10
    assert clipped[0] == Importance()(blind, caption)[0]


def test_captions_of_packed_rows_are_told_apart_and_padding_counts_for_nothing() -> None:
    labels = torch.tensor([[-100, 5, 6, -100, 7, 8], [-100, -100, 9, 9, -100, -100]])
    segments = torch.tensor([[1, 1, 1, 2, 2, 2], [1, 1, 1, 1, 0, 0]])
    blind = torch.tensor([[0, 0.5, 0.75, 0, 0.1, 0.1], [0, 0, 0.2, 0.6, 0, 0]])
    factors = factors_of(Importance(), labels, segments, blind)
    torch.testing.assert_close(factors, torch.tensor([4 / 3, 2 / 3, 1, 1, 4 / 3, 2 / 3]))


def test_a_batch_without_a_learned_word_has_no_factors() -> None:
    assert Importance()(torch.empty(0), torch.empty(0).long()).shape == (0,)


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("alpha", -0.5, "alpha is -0.5; it is 0 or more"),
        ("alpha", float("nan"), "alpha is nan"),
        ("floor", 0.0, "floor is 0.0; it is above 0"),
        ("floor", 1.5, "floor is 1.5"),
        ("clip", 0.5, "clip is 0.5; it is 0 for none, or at least 1"),
    ],
)
def test_values_that_make_no_weights_are_refused(field: str, value: float, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Importance(**{field: value})
