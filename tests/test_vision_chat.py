"""A language model with eyes in use: its folder, what it is asked and answers, and what it refuses."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

import tessera
from tessera.data.conversation import LLAVA
from tessera.data.sample import Image, Text
from tessera.data.tiling import TiledPixels
from tessera.errors import BadSample, CheckpointError, UserError
from tessera.generate.prompts import Heard
from tessera.vision_chat import VisionChat
from tests.data.tiny import tokenizer
from tests.vision_chat_tiny import CONTEXT, noise, vision_chat

SHOWN = [noise(0), noise(1, 40, 30), noise(2, 10, 50)]
ASKED = ["what?", "which colour is it?", "how many circles are at the top?"]


@pytest.fixture(scope="module")
def chat():
    return vision_chat()


@pytest.fixture(scope="module")
def folder(chat, tmp_path_factory):
    place = tmp_path_factory.mktemp("chat") / "model"
    chat.save(place)
    return place


@pytest.fixture(scope="module")
def answers(chat):
    return chat.answer(SHOWN, ASKED, max_new_tokens=6)


def user(*parts):
    return [Text(part, False, "user") if isinstance(part, str) else Image(part, False, role="user") for part in parts]


def test_answers_together_are_those_alone(chat, answers):
    assert answers == [chat.answer(*pair, max_new_tokens=6) for pair in zip(SHOWN, ASKED, strict=True)]
    assert len(set(answers)) == 3


def test_a_saved_folder_answers_the_same_with_its_card_and_as_transformers_would_leave_it(folder, answers, tmp_path):
    assert tessera.load(folder).answer(SHOWN, ASKED, max_new_tokens=6) == answers
    for file in folder.iterdir():
        if file.name != "tessera.json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    bare = tessera.load(tmp_path)
    assert isinstance(bare, VisionChat) and bare.answer(SHOWN, ASKED, max_new_tokens=6) == answers


def test_transformers_and_its_processor_read_the_folder_and_say_the_same(folder, answers):
    theirs, processor = LlavaForConditionalGeneration.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    for picture, question, answer in zip(SHOWN, ASKED, answers, strict=True):
        turns = [{"role": "user", "content": f"<image>\n{question}"}]
        text = processor.apply_chat_template(turns, add_generation_prompt=True)
        inputs = processor(text=text, images=picture, return_tensors="pt")
        said = theirs.generate(**inputs, max_new_tokens=6, do_sample=False)
        assert processor.decode(said[0, inputs.input_ids.shape[1] :], skip_special_tokens=True).strip() == answer


def test_a_model_that_has_no_place_in_llavas_layout_is_kept_in_ours(tmp_path):
    ours = vision_chat(TiledPixels(16, most=3), needs_picture=True, connector="linear")
    ours.save(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["model_type"] == "tessera-lvlm"
    back = tessera.load(tmp_path / "model")
    assert back.pixels == ours.pixels and back.needs_picture
    wide = noise(3, 48, 16)
    assert back.answer(wide, "what?", max_new_tokens=6) == ours.answer(wide, "what?", max_new_tokens=6)
    slot = ours.model.config.image_token_id
    assert list(ours.builder.prompt(user(wide, "what?")).input_ids).count(slot) == 4 * ours.model.num_image_tokens()


def test_pictures_stand_where_their_tags_do_and_else_before_the_words(chat):
    left, right = SHOWN[:2]
    tagged = chat.answer([[left, right]], "is <image> left of <image> here?", max_new_tokens=6)
    assert tagged == chat.chat(user("is", left, "left of", right, "here?"), max_new_tokens=6)
    plain = chat.answer([(left, right)], "which is larger?", max_new_tokens=6)
    assert plain == chat.chat(user(left, right, "which is larger?"), max_new_tokens=6)


def test_a_later_turn_may_show_a_picture_beside_those_shown_before(chat):
    said = user(SHOWN[0], "what?") + [Text("a red circle", role="assistant")]
    turns = said + user("and in", SHOWN[1])
    first = chat.chat(turns, max_new_tokens=6)
    assert first == chat.chat(said + user(SHOWN[1], "and in <image>"), max_new_tokens=6)
    assert [image.source for image in chat.builder.prompt(turns).images] == SHOWN[:2]


def test_words_are_heard_as_they_are_said(chat):
    heard: list[str] = []
    (reply,) = chat.stream(user(SHOWN[1], ASKED[1]), heard.append, max_new_tokens=20)
    assert "".join(heard).strip() == reply == chat.chat(user(SHOWN[1], ASKED[1]), max_new_tokens=20)[0]


def test_each_word_is_heard_once_it_is_whole():
    heard: list[str] = []
    listening = Heard(tokenizer(), heard.append)
    listening.put(torch.tensor([[1, 2, 3]]))  # the prompt
    for number in tokenizer()("a red circle at the top").input_ids:
        listening.put(torch.tensor([number]))
    assert [text.strip() for text in heard] == ["a", "red", "circle", "at", "the"]
    listening.end()
    assert "".join(heard) == "a red circle at the top"


def test_options_of_generate_reach_it(chat):
    torch.manual_seed(0)
    drawn = {chat.chat(user(SHOWN[0], "what?"), max_new_tokens=6, do_sample=True)[0] for _ in range(4)}
    assert len(drawn) > 1


REFUSED = {
    "more tags than pictures": (user(SHOWN[0], "is <image> like <image>?"), BadSample, "2 <image> tags but 1 pictures"),
    "more pictures than tags": (user(*SHOWN[:2], "what is <image>?"), BadSample, "1 <image> tags but 2 pictures"),
    "an unknown role": ([Text("hello", False, "robot")], BadSample, "unknown role 'robot'; known are system, user"),
    "no words": (user(SHOWN[0], " "), BadSample, "the text is empty"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_dialogue_that_makes_no_sense_is_refused(case, chat):
    turns, kind, sentence = REFUSED[case]
    with pytest.raises(kind, match=sentence):
        chat.chat(turns)


def test_a_prompt_that_is_too_long_is_refused_with_by_how_much(chat):
    turns = user(SHOWN[0], "a red circle " * 400)
    length = len(chat.builder.prompt(turns))
    with pytest.raises(UserError, match=f"has {length} tokens .* reads {CONTEXT}, .*: {length - CONTEXT + 1} too many"):
        chat.chat(turns)


def test_a_model_of_pictures_alone_wants_one_and_another_does_not(chat):
    with pytest.raises(UserError, match="learned from dialogues with pictures alone; show it one first"):
        VisionChat(chat.model, chat.tokenizer, chat.pixels, needs_picture=True).chat(user("what?"))
    assert chat.answer([[]], ["what?"], max_new_tokens=4) == chat.chat(user("what?"), max_new_tokens=4)


def test_a_language_model_without_a_template_or_the_image_token_is_refused(chat, folder, tmp_path):
    with pytest.raises(UserError, match=r"no chat template; write one as chat_template\.jinja"):
        VisionChat(chat.model, tokenizer(), chat.pixels)
    for file in folder.iterdir():
        if file.name != "chat_template.jinja":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(UserError, match="no chat template"):
        tessera.load(tmp_path)
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": LLAVA}))  # as older folders have it
    assert tessera.load(tmp_path).tokenizer.chat_template == LLAVA


def test_other_numbers_of_pictures_and_questions_are_refused(chat):
    with pytest.raises(UserError, match="3 pictures and 2 questions"):
        chat.answer(SHOWN, ASKED[:2])


def test_an_image_processor_that_does_not_suit_the_encoder_is_refused(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    given = json.loads((tmp_path / "processor_config.json").read_text())
    given["image_processor"]["crop_size"] = {"height": 24, "width": 24}
    (tmp_path / "processor_config.json").write_text(json.dumps(given))
    with pytest.raises(CheckpointError, match="its encoder reads 16 x 16; give size and crop_size of 16"):
        tessera.load(tmp_path)
    (tmp_path / "processor_config.json").unlink()
    with pytest.raises(CheckpointError, match="the image processor in .* cannot be loaded"):
        tessera.load(tmp_path)


def test_a_mini_part_that_there_is_not_is_named_with_the_nearest():
    with pytest.raises(UserError, match="there is no mini part 'mini/clp'; did you mean 'mini/clip'"):
        tessera.load("mini/clp")
