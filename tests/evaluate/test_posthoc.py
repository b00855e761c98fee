"""Post-hoc debiasing: the worked example, uniform answers without a picture, and labels however they are spelled."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tessera.errors import UserError
from tessera.evaluate.posthoc import (
    YES_NO,
    answer_logits,
    label_probabilities,
    label_words,
    language_prior,
    post_hoc,
    shares,
)

VOCABULARY = ["<unk>", "yes", "Yes", "no", "No", "NO", "A", "B", "a", "(", "the", ")"]


@pytest.fixture
def tokenizer():
    made = Tokenizer(models.WordLevel({word: place for place, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")


@pytest.mark.light("vdd", "exact")
def test_the_worked_example_of_the_paper_follows():
    found = post_hoc(torch.tensor([0.55, 0.45]).double(), torch.tensor([0.67, 0.33]).double())
    torch.testing.assert_close(found, torch.tensor([0.3758, 0.6242]).double(), atol=1e-4, rtol=0)


@pytest.mark.light("vdd", "exact")
@pytest.mark.parametrize("prior", [(0.67, 0.33), (0.99, 0.01), (0.2, 0.3, 0.1, 0.4), (1.0, 0.5)])
def test_a_question_without_a_picture_has_a_uniform_answer(prior):
    prior = torch.tensor([prior]).double()
    found = post_hoc(prior, prior)
    torch.testing.assert_close(found, torch.full_like(prior, 1 / prior.shape[1]), atol=5e-3, rtol=0)
    assert post_hoc(prior, prior, "identity").abs().max() == 0


def test_a_uniform_prior_changes_nothing_and_a_label_without_prior_is_no_fault():
    p = torch.tensor([[0.7, 0.3], [0.2, 0.8]]).double()
    torch.testing.assert_close(post_hoc(p, torch.full_like(p, 0.5)), p)
    assert post_hoc(p, torch.tensor([1.0, 0.0]).double()).isfinite().all()
    torch.testing.assert_close(post_hoc(p, torch.tensor([0.6, 0.4]).double(), "identity")[0].sum(), p.new_tensor(0.0))


def test_every_spelling_of_a_label_counts_over_the_whole_vocabulary(tokenizer):
    words = label_words(tokenizer, YES_NO)
    assert words == [[1, 2], [3, 4, 5]]
    logits = torch.log(torch.tensor([[0.1, 0.2, 0.15, 0.05, 0.1, 0.02, 0.1, 0.1, 0.05, 0.05, 0.05, 0.03]]))
    torch.testing.assert_close(label_probabilities(logits, words), torch.tensor([[0.35, 0.17]]).double())


def test_a_label_far_from_the_likeliest_words_still_has_its_probability(tokenizer):
    logits = torch.zeros(1, len(VOCABULARY))
    logits[0, 10] = 30.0
    assert (label_probabilities(logits, label_words(tokenizer, YES_NO)) > 0).all()


def test_option_letters_are_told_from_the_article(tokenizer):
    assert label_words(tokenizer, ["A", "B"], casings=False) == [[6], [7]]
    with pytest.raises(UserError, match="'A' and 'a' share a token"):
        label_words(tokenizer, ["A", "a"])
    with pytest.raises(UserError, match="no single token for 'C'"):
        label_words(tokenizer, ["A", "C"], casings=False)


def test_an_option_is_read_at_the_first_word_that_is_no_bracket(tokenizer):
    steps = [torch.arange(2 * len(VOCABULARY)).view(2, -1) + 100 * step for step in range(3)]
    said = torch.tensor([[9, 6, 11], [7, 10, 10]])
    assert torch.equal(answer_logits(steps, said, tokenizer), torch.stack([steps[1][0], steps[0][1]]))


def test_a_prior_is_of_each_question_or_of_all_and_contexts_add_up():
    none = torch.tensor([[0.08, 0.02], [0.3, 0.3]]).double()
    unk = torch.tensor([[0.6, 0.4], [0.1, 0.0]]).double()
    torch.testing.assert_close(language_prior([none]), torch.tensor([[0.8, 0.2], [0.5, 0.5]]).double())
    torch.testing.assert_close(language_prior([none, unk]), torch.tensor([[0.7, 0.3], [0.75, 0.25]]).double())
    torch.testing.assert_close(language_prior([none], "all"), torch.tensor([[0.65, 0.35]] * 2).double())
    with pytest.raises(UserError, match="at least one meaningless context"):
        language_prior([])


def test_shares_of_nothing_are_uniform():
    assert shares(torch.zeros(1, 4)).tolist() == [[0.25] * 4]
