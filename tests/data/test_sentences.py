"""Sentences between two marks, cut to what a model reads."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from tessera.data.sentences import MASK, Sentences
from tessera.errors import CheckpointError

WORDS = ["<pad>", "<s>", "</s>", MASK, "a", "b", "c"]


def tokenizer(**marks: str) -> PreTrainedTokenizerFast:
    """A token a letter; other letters are unknown."""
    from tokenizers.pre_tokenizers import Whitespace

    made = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="a"))
    made.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", **marks)


def test_marks_stand_at_both_ends_and_long_sentences_are_cut() -> None:
    sentences = Sentences(tokenizer(bos_token="<s>", eos_token="</s>", mask_token=MASK), 5)
    assert sentences.marked(sentences.words(" a b ")).tolist() == [1, 4, 5, 2]
    assert sentences.marked(sentences.words("a b c a b c")).tolist() == [1, 4, 5, 6, 2]
    assert sentences.marked(np.array([7, 8]), -100, -100).tolist() == [-100, 7, 8, -100]
    assert (sentences.mask_id, sentences.vocabulary) == (3, 7)


def test_rows_are_padded_to_the_longest_and_the_mask_says_where_a_word_is() -> None:
    sentences = Sentences(tokenizer(cls_token="<s>", sep_token="</s>", mask_token=MASK), 9)
    ids, mask = sentences.collate([sentences.marked(sentences.words(text)) for text in ("a b c", "")])
    assert ids.tolist() == [[1, 4, 5, 6, 2], [1, 2, 0, 0, 0]]
    assert mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]


def test_a_tokenizer_without_a_mark_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"no token that serves as \[MASK\]"):
        Sentences(tokenizer(bos_token="<s>", eos_token="</s>"), 9)
    with pytest.raises(CheckpointError, match=r"no token that serves as \[CLS\]"):
        Sentences(tokenizer(mask_token=MASK), 9)
