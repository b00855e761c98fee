"""A sample becomes the documented run of tokens, and exactly its learned segments carry labels."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from tessera.data import tasks
from tessera.data.sample import Image, Sample, State, Text, interleaved, pair, question
from tessera.data.sequence import IGNORED, Sequence, SequenceBuilder
from tessera.errors import BadSample, UserError
from tests.data.tiny import tokenizer

TOKENIZER = tokenizer()
PICTURE = Image(np.zeros((4, 4, 3), np.uint8))
SHOWN = "[IMG]<image><image><image>[/IMG]"


def _builder(**options: object) -> SequenceBuilder:
    return SequenceBuilder(TOKENIZER, 3, **options)


def _words(sequence: Sequence) -> str:
    return TOKENIZER.decode(sequence.input_ids.tolist())


def _learned(sequence: Sequence) -> str:
    return TOKENIZER.decode([label for label in sequence.labels.tolist() if label != IGNORED])


def test_a_pair_is_learned_whole_and_its_placeholders_by_regression() -> None:
    sequence = _builder().build(pair(PICTURE, "a red circle"))
    assert _words(sequence) == f"<s>{SHOWN}a red circle</s>"
    assert _learned(sequence) == "[IMG][/IMG]a red circle</s>"
    assert sequence.visual_target.tolist()[:6] == [False, False, True, True, True, False]
    assert sequence.visual_target.sum() == 3
    assert (sequence.input_ids.dtype, sequence.labels.dtype) == (np.int32, np.int64)


def test_labels_are_the_ids_at_their_own_positions_and_never_placeholders() -> None:
    sequence = _builder().build(interleaved(["a red", PICTURE, "a blue", PICTURE]))
    learned = sequence.labels != IGNORED
    assert np.array_equal(sequence.labels[learned], sequence.input_ids[learned])
    assert sequence.labels[0] == IGNORED
    assert not np.any(learned & sequence.visual_target)
    # everything after the first position is a target, of one kind or the other
    assert np.all(learned[1:] | sequence.visual_target[1:])
    assert sequence.images == (PICTURE, PICTURE)


def test_a_picture_that_is_only_read_has_no_targets() -> None:
    sample = Sample((Image(PICTURE.source, learned=False), Text("a red circle")))
    sequence = _builder().build(sample)
    assert _learned(sequence) == "a red circle</s>"
    assert not sequence.visual_target.any()


def test_of_a_dialogue_the_answer_and_its_end_are_learned() -> None:
    sequence = _builder(system="You are a helpful assistant.").build(question(PICTURE, "What is it?", "a red circle"))
    expected = f"<s>You are a helpful assistant. USER:{SHOWN} What is it? ASSISTANT: a red circle</s>"
    assert _words(sequence) == expected
    assert _learned(sequence) == " a red circle</s>"


def test_every_answer_of_a_long_dialogue_is_learned_and_no_marker() -> None:
    turns = [
        Text("Be kind.", role="system"),
        Text("Hello", role="user"),
        Text("Good day", role="assistant"),
        Text("Draw it", role="user"),
        Text("Here.", role="assistant"),
        Image(PICTURE.source, role="assistant"),
    ]
    sequence = _builder().build(Sample(tuple(turns)))
    assert _words(sequence) == (
        f"<s>Be kind. USER: Hello ASSISTANT: Good day</s>USER: Draw it ASSISTANT: Here.{SHOWN}</s>"
    )
    assert _learned(sequence) == " Good day</s> Here.[IMG][/IMG]</s>"
    assert sequence.visual_target.sum() == 3


def test_a_turn_set_as_read_is_not_learned() -> None:
    turns = (
        Text("a", role="user"),
        Text("wrong", learned=False, role="assistant"),
        Text("b", role="user"),
        Text("right", role="assistant"),
    )
    assert _learned(_builder().build(Sample(turns))) == " right</s>"


def test_texts_that_follow_each_other_are_set_apart() -> None:
    sequence = _builder().build(interleaved(["a red", "circle"]))
    assert _words(sequence) == "<s>a red circle</s>"


def test_special_tokens_in_a_users_words_stay_words() -> None:
    sequence = _builder().build(pair(PICTURE, "a [IMG] <image> </s> circle"))
    ids = sequence.input_ids.tolist()
    assert [ids.count(TOKENIZER.convert_tokens_to_ids(t)) for t in ("[IMG]", "<image>", "</s>")] == [1, 3, 1]
    assert "a [IMG] <image> </s> circle" in _words(sequence)


def test_the_tokenizer_is_not_changed() -> None:
    before = TOKENIZER("[IMG]").input_ids
    _builder().build(pair(PICTURE, "[IMG]"))
    assert TOKENIZER("[IMG]").input_ids == before == [TOKENIZER.convert_tokens_to_ids("[IMG]")]


def test_a_sequence_over_the_limit_says_what_it_needs() -> None:
    needs = len(_builder().build(pair(PICTURE, "a red circle")))
    assert len(_builder(max_length=needs).build(pair(PICTURE, "a red circle"))) == needs
    sentence = f"needs {needs} tokens, limit {needs - 1}; shorten the text"
    with pytest.raises(BadSample, match=sentence):
        _builder(max_length=needs - 1).build(pair(PICTURE, "a red circle"))


@pytest.mark.parametrize(
    ("sample", "reason"),
    [
        (Sample(()), "nothing to learn"),
        (Sample((Text("a", learned=False),)), "nothing to learn"),
        (Sample((Text("a question", role="user"),)), "nothing to learn"),
        (pair(PICTURE, "  \n"), "the text is empty"),
        (pair(PICTURE, "x" * 1_000_000), "1,000,000 bytes is over the limit of 100,000"),
        (pair(PICTURE, "half \ud83d"), "not valid Unicode"),
        (Sample((Text("a"), State(np.zeros(2)))), "a State segment has no place"),
        (Sample((Text("a", role="robot"),)), "unknown role 'robot'"),
    ],
)
def test_a_sample_that_cannot_be_learned_is_refused(sample: Sample, reason: str) -> None:
    with pytest.raises(BadSample, match=reason):
        _builder().build(sample)


def test_a_tokenizer_without_the_picture_tokens_is_refused() -> None:

    plain = tokenizer().backend_tokenizer.to_str().replace("[IMG]", "[OTHER]")

    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(plain), bos_token="<s>", eos_token="</s>")
    with pytest.raises(UserError, match=r"lacks \[IMG\]"):
        SequenceBuilder(other, 3)


def test_a_prompt_is_the_beginning_of_what_was_learned() -> None:
    """Generation starts from the very tokens that training put before the answer."""
    builder = _builder()
    asked = question(PICTURE, "What is it?", "a red circle")
    prompt, whole = builder.prompt(asked.segments[:2]), builder.build(asked)
    assert np.array_equal(prompt.input_ids, whole.input_ids[: len(prompt)])
    assert len(prompt) == int(np.argmax(whole.labels != IGNORED))
    assert np.all(prompt.labels == IGNORED)
    drawn = builder.prompt([Text("a red circle")], draw=True)
    page = builder.build(interleaved(["a red circle", PICTURE]))
    assert np.array_equal(drawn.input_ids, page.input_ids[: len(drawn)])
    assert drawn.input_ids[-1] == builder.open_id


def test_a_lead_in_opens_the_answer() -> None:
    prompt = _builder(system="").prompt([Text("What is it?", role="user")], "Short answer:")
    assert _words(prompt) == "<s>USER: What is it? ASSISTANT: Short answer:"
    assert _words(_builder().prompt([PICTURE], "a red")) == f"<s>{SHOWN}a red"


def test_pair_order_is_even_and_belongs_to_the_generator() -> None:
    sample = pair(PICTURE, "a red circle")
    orders = [tasks.pair_order(sample, np.random.default_rng(seed)) for seed in range(200)]
    first = sum(isinstance(order.segments[0], Image) for order in orders)
    assert 70 < first < 130
    again = tasks.pair_order(sample, np.random.default_rng(0))
    assert again.segments == orders[0].segments


@pytest.mark.parametrize("task", [tasks.caption, tasks.draw])
def test_instructions_come_in_several_phrasings_and_only_the_answer_is_learned(task: tasks.Task) -> None:
    sample = pair(PICTURE, "a {red} circle")
    asked = set()
    for seed in range(60):
        made = task(sample, np.random.default_rng(seed))
        asked.add(made.segments[0 if task is tasks.draw else 1].text)
        assert all(segment.learned == (segment.role == "assistant") for segment in made.segments)
        assert "a {red} circle" in made.text
        assert len(_builder().build(made).images) == 1
    assert len(asked) == 8


def test_an_edit_learns_the_picture_after_and_an_impossible_one_its_reason() -> None:
    rng = np.random.default_rng(0)
    done = tasks.edit(Sample((PICTURE, Text("make it red"), PICTURE)), rng)
    assert _builder().build(done).visual_target.sum() == 3
    refused = tasks.edit(Sample((PICTURE, Text("make it red"), Text("There is none."))), rng)
    assert _learned(_builder().build(refused)) == " There is none.</s>"


def test_a_question_without_roles_becomes_a_dialogue() -> None:
    bare = Sample((Image(PICTURE.source, learned=False), Text("How many?", learned=False), Text("two")))
    assert [segment.role for segment in tasks.chat(bare).segments] == ["user", "user", "assistant"]


def test_a_task_refuses_a_sample_of_another_kind() -> None:
    with pytest.raises(BadSample, match="one picture and one text"):
        tasks.caption(interleaved([PICTURE, "a", PICTURE]), np.random.default_rng(0))
    with pytest.raises(BadSample, match="an edit is"):
        tasks.edit(pair(PICTURE, "a"), np.random.default_rng(0))
