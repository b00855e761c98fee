"""Samples as words alone, beside their picture: what is written, what is learned, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tessera.data.beside import Beside
from tessera.data.sample import Image, Sample, Text, pair, question
from tessera.errors import BadSample, UserError
from tessera.zoo.parts import load_tokenizer

ASK = "USER: {} ASSISTANT:"
PICTURE = Image(np.zeros((4, 4, 3), np.uint8))


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("mini/tokenizer")


def text_of(tokenizer, ids):
    return tokenizer.decode(ids).strip()


def test_a_caption_is_learned_whole_with_its_end(tokenizer):
    row = Beside(tokenizer, ASK, 40).read(pair(PICTURE, "a red star"))
    assert text_of(tokenizer, row.ids) == "<s> a red star</s>"
    assert row.learned == [False] + [True] * (len(row.ids) - 1)
    assert row.image is PICTURE


@pytest.mark.parametrize("questions_learned", [True, False])
def test_a_prompt_begins_as_the_row_that_was_learned_and_the_loss_covers_what_it_should(tokenizer, questions_learned):
    builder = Beside(tokenizer, ASK, 40, questions_learned)
    row, prompt = builder.read(question(PICTURE, "how many?", "two")), builder.prompt("how many?")
    assert row.ids[: len(prompt)] == prompt
    assert text_of(tokenizer, row.ids) == "<s> USER: how many? ASSISTANT: two</s>"
    assert row.learned[1 : len(prompt)] == [questions_learned] * (len(prompt) - 1)
    assert all(row.learned[len(prompt) :]) and not row.learned[0]
    assert builder.prompt(None) == row.ids[:1]


def test_a_mark_of_its_own_ends_a_question_without_a_space_and_is_one_token(tokenizer):
    own = load_tokenizer("mini/tokenizer")
    own.add_tokens(["</a>"], special_tokens=True)
    row = Beside(own, "{}</a>", 40).read(question(PICTURE, "how many?", "two"))
    assert row.ids.count(own.convert_tokens_to_ids("</a>")) == 1
    assert len(own) == len(tokenizer) + 1


def test_several_questions_follow_each_other(tokenizer):
    segments = (
        PICTURE, Text("where?", learned=False, role="user"), Text("left", role="assistant"),
        Text("what?", learned=False, role="user"), Text("a star", role="assistant"),
    )  # fmt: skip
    row = Beside(tokenizer, ASK, 60).read(Sample(segments))
    wanted = "<s> USER: where? ASSISTANT: left</s> USER: what? ASSISTANT: a star</s>"
    assert text_of(tokenizer, row.ids) == wanted


def test_rows_are_padded_on_the_right_and_prompts_on_the_left(tokenizer):
    builder = Beside(tokenizer, ASK, 40, questions_learned=False)
    rows = [builder.read(pair(PICTURE, text)) for text in ("a star", "a big red star at the top")]
    batch = builder.collate(rows).to("cpu")
    short = len(rows[0].ids)
    assert batch.attention_mask[0].tolist() == [1] * short + [0] * (batch.input_ids.shape[1] - short)
    assert batch.labels[0].tolist() == [-100, *rows[0].ids[1:], *[-100] * (batch.input_ids.shape[1] - short)]
    assert torch.equal(batch.input_ids[1], torch.tensor(rows[1].ids))
    ids, mask = builder.left([builder.prompt(None), builder.prompt("how many?")])
    assert mask[0].tolist() == [0] * (ids.shape[1] - 1) + [1] and mask[1].all()


@pytest.mark.parametrize(
    ("segments", "sentence"),
    [
        ((Text("a star"),), "has 0 pictures; this model takes one"),
        ((PICTURE, Image(np.ones((4, 4, 3), np.uint8)), Text("a star")), "has 2 pictures"),
        ((PICTURE, Text("be brief", learned=False, role="system"), Text("a star")), "a text of role 'system'"),
        ((PICTURE, Text("what?", learned=False)), "nothing to learn"),
        ((PICTURE, Text("a </s> star")), "holds </s>, which is a mark of the tokenizer"),
        ((PICTURE, Text(" ")), "the text is empty"),
        ((PICTURE, Text("star " * 50)), "limit 40"),
    ],
)
def test_what_has_no_place_is_a_bad_sample(tokenizer, segments, sentence):
    with pytest.raises(BadSample, match=sentence):
        Beside(tokenizer, ASK, 40).read(Sample(segments))


def test_a_tokenizer_without_an_end_is_refused():
    tokenizer = load_tokenizer("mini/tokenizer")
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="no end token"):
        Beside(tokenizer, ASK, 40)
