"""A dialogue becomes what the model's own template writes, and exactly the learned answers carry labels."""

from __future__ import annotations

import numpy as np
import pytest

from tessera.data.conversation import LLAVA, ConversationBuilder
from tessera.data.readers.llava import conversation
from tessera.data.sample import Image, Sample, State, Text, pair, question
from tessera.data.sequence import IGNORED, Sequence, SequenceBuilder
from tessera.errors import BadSample, UserError
from tests.data.tiny import tokenizer

TOKENIZER = tokenizer()
PICTURE = Image(np.zeros((4, 4, 3), np.uint8))
CHATML = (
    "{% for message in messages %}{{ '[IMG]' + message['role'] + '\n' + message['content'] + '</s>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[IMG]assistant\n' }}{% endif %}"
)
# llava-hf/llava-1.5-7b-hf, shortened: a list of parts, pictures first, no end mark
PARTS = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
FORGETFUL = (
    "{% for message in messages %}{% if loop.last or message['role'] == 'user' %}{{ message['content'] }}{% endif %}"
    "{% endfor %}"
)
SHOWN = "<image><image><image>"
TALK = (
    Image(PICTURE.source, learned=False, role="user"),
    Text("What is it?", learned=False, role="user"),
    Text("a red circle", role="assistant"),
    Text("And the rest?", learned=False, role="user"),
    Image(PICTURE.source, learned=False, role="user"),
    Text("a blue square", role="assistant"),
)


def builder(template: str | None = LLAVA, **options: object) -> ConversationBuilder:
    return ConversationBuilder(TOKENIZER, 3, chat_template=template, **options)


def written(sequence: Sequence) -> str:
    return TOKENIZER.decode(sequence.input_ids.tolist())


def learned(sequence: Sequence) -> str:
    return TOKENIZER.decode([label for label in sequence.labels.tolist() if label != IGNORED])


@pytest.mark.parametrize(
    ("template", "text", "answers"),
    [
        (
            LLAVA,
            f"<s>USER: {SHOWN}\nWhat is it? ASSISTANT: a red circle</s>USER: And the rest?\n{SHOWN}"
            " ASSISTANT: a blue square</s>",
            " a red circle</s> a blue square</s>",
        ),
        (
            CHATML,
            f"[IMG]user\n{SHOWN}\nWhat is it?</s>\n[IMG]assistant\na red circle</s>\n"
            f"[IMG]user\nAnd the rest?\n{SHOWN}</s>\n[IMG]assistant\na blue square</s>\n",
            "a red circle</s>\na blue square</s>\n",
        ),
        (
            PARTS,
            f"USER: {SHOWN}\nWhat is it? ASSISTANT: a red circle USER: {SHOWN}\nAnd the rest?"
            " ASSISTANT: a blue square </s>",
            " a red circle a blue square </s>",
        ),
    ],
)
def test_a_dialogue_is_what_its_template_writes_and_the_answers_with_their_ends_are_learned(template, text, answers):
    sequence = builder(template).build(Sample(TALK))
    assert written(sequence) == text
    assert learned(sequence) == answers
    assert len(sequence.images) == 2 and not sequence.visual_target.any()


@pytest.mark.parametrize("template", [LLAVA, CHATML, PARTS])
def test_a_prompt_is_the_beginning_of_what_was_learned(template):
    whole, prompt = builder(template).build(Sample(TALK)), builder(template).prompt(TALK[:5])
    first = np.flatnonzero(whole.labels != IGNORED)
    start = first[np.flatnonzero(np.diff(first) > 1)[0] + 1]  # of the second answer
    assert prompt.input_ids.tolist() == whole.input_ids[:start].tolist()
    assert (prompt.labels == IGNORED).all() and len(prompt.images) == 2


def test_the_llava_form_is_that_of_the_house_but_for_the_delimiters_of_a_picture():
    ours = builder(system="Be kind.").build(question(PICTURE, "What is it?", "a red circle"))
    house = SequenceBuilder(TOKENIZER, 3, system="Be kind.").build(question(PICTURE, "What is it?", "a red circle"))
    plain = written(house).replace("[IMG]", " ").replace("[/IMG] ", "\n")
    assert written(ours) == plain and learned(ours) == learned(house)


def test_a_prompt_goes_on_after_its_lead_in():
    assert written(builder(CHATML).prompt(TALK[:2], "a red")).endswith("[IMG]assistant\na red")


def test_a_caption_is_running_text_after_its_picture():
    sequence = builder(None).build(pair(PICTURE, "a red circle"))
    assert learned(sequence) == "a red circle</s>"
    assert written(sequence).endswith(f"{SHOWN}a red circle</s>")


def test_the_begin_token_stands_where_the_tokenizer_puts_it_and_once():
    begins = tokenizer()
    begins.add_bos_token = True
    begins._tokenizer.post_processor = _begin(begins)
    for template in (LLAVA, CHATML):
        ids = ConversationBuilder(begins, 3, chat_template=template).build(Sample(TALK)).input_ids.tolist()
        assert ids[0] == begins.bos_token_id and ids.count(begins.bos_token_id) == 1
    first = ConversationBuilder(begins, 3).build(pair(PICTURE, "a red circle")).input_ids
    assert first[0] == begins.bos_token_id


def _begin(tokens):
    from tokenizers import processors

    return processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", tokens.bos_token_id)])


def test_pictures_may_take_different_numbers_of_places():
    several = ConversationBuilder(TOKENIZER, lambda image: 5 if image.key == "wide" else 2, chat_template=LLAVA)
    wide = (Image(PICTURE.source, key="wide", role="user"), *TALK)
    assert (several.build(Sample(wide)).input_ids == several.place_id).sum() == 5 + 2 + 2


def test_an_answer_that_is_only_read_is_not_learned():
    read = (*TALK[:2], Text("a red circle", learned=False, role="assistant"), *TALK[3:])
    assert learned(builder().build(Sample(read))) == " a blue square</s>"


@pytest.mark.parametrize(
    ("segments", "template", "said"),
    [
        ((Text("a", role="robot"),), LLAVA, "unknown role 'robot'"),
        ((Text("see <image>", role="user"), *TALK[2:3]), LLAVA, "holds <image>, which marks a picture"),
        ((State(np.zeros(2)), *TALK[1:3]), LLAVA, "a State segment has no place in a dialogue"),
        ((*TALK[1:3], Text("or so", learned=False, role="assistant")), LLAVA, "is learned in part"),
        (TALK, FORGETFUL, "writes a turn otherwise once another follows"),
        (TALK, "{{ raise_exception('roles must alternate') }}", "refuses the dialogue: roles must alternate"),
        (TALK[:3], "{% for m in messages %}{{ m['content'][-5:] }}{% endfor %}", "wrote 0 marks for 1 pictures"),
        (TALK[:2], LLAVA, "nothing to learn"),
    ],
)
def test_a_dialogue_that_cannot_be_written_is_one_sentence(segments, template, said):
    with pytest.raises(BadSample, match=said):
        builder(template).build(Sample(tuple(segments)))


def test_tags_and_pictures_that_differ_in_number_are_counted():
    with pytest.raises(BadSample, match="the conversation has 2 <image> tags but 1 pictures"):
        conversation([{"from": "human", "value": "<image> <image> What?"}], [("a", "a.png")])


def test_a_dialogue_without_a_template_and_a_tokenizer_without_the_image_token_are_one_sentence():
    with pytest.raises(UserError, match="has no chat template, which a dialogue needs"):
        builder(None).build(Sample(TALK))
    with pytest.raises(UserError, match="the tokenizer lacks <picture>"):
        builder(image_token="<picture>")
    with pytest.raises(UserError, match="cannot begin a picture"):
        builder().prompt(TALK[:2], draw=True)
    with pytest.raises(BadSample, match="limit 10"):
        builder(max_length=10).build(Sample(TALK))
