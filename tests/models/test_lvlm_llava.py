"""LLaVA's layout, both ways, against the class of transformers."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlavaConfig, LlavaForConditionalGeneration

from tessera.errors import CheckpointError, UserError
from tessera.models.lvlm import load_llava, save_llava
from tests.models.lvlm_tiny import BEGIN, PICTURE, SLOT, VOCABULARY, causal_model, llava, pixels, tiny_model, words

CLOSE = {"atol": 1e-5, "rtol": 0}
KINDS = {
    "llava-1.5": {},
    "two layers and the class token": {
        "vision_feature_layer": [-2, -1], "vision_feature_select_strategy": "full", "image_seq_length": 5,
    },
    "no bias, silu": {"multimodal_projector_bias": False, "projector_hidden_act": "silu"},
    "tied words": {"text": {"tie_word_embeddings": True}},
    "qwen2 and a layer from the front": {"text": {"model_type": "qwen2"}, "vision_feature_layer": 2},
}  # fmt: skip


def inputs(tokens=4):
    picture = [SLOT] * tokens
    ids = [[BEGIN, *picture, *words(3), *picture, *words(2, 1)], [BEGIN, *words(5, 2), *picture, *picture]]
    return {"input_ids": torch.tensor(ids), "pixel_values": pixels(4)}


@torch.no_grad()
def scores(model, tokens=4):
    return model(**inputs(tokens)).logits


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_llava_is_read_and_written_with_equal_logits(kind, tmp_path):
    theirs = llava(**KINDS[kind])
    tokens = theirs.config.image_seq_length
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_llava(tmp_path / "theirs")
    wanted = scores(theirs, tokens)
    torch.testing.assert_close(scores(ours, tokens), wanted, **CLOSE)
    assert ours.num_image_tokens() == tokens
    save_llava(ours, tmp_path / "ours")
    back = LlavaForConditionalGeneration.from_pretrained(tmp_path / "ours")
    torch.testing.assert_close(scores(back, tokens), wanted, **CLOSE)
    first, second = (load_file(tmp_path / one / "model.safetensors") for one in ("theirs", "ours"))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    LlavaForConditionalGeneration.from_pretrained(tmp_path / "theirs").save_pretrained(tmp_path / "again")
    configs = [json.loads((tmp_path / one / "config.json").read_text()) for one in ("again", "ours")]
    assert configs[0] == configs[1]


def test_a_model_of_ours_is_read_by_transformers_with_equal_logits_loss_and_words(tmp_path):
    ours = tiny_model()
    save_llava(ours, tmp_path)
    theirs = LlavaForConditionalGeneration.from_pretrained(tmp_path)
    torch.testing.assert_close(scores(theirs), scores(ours), **CLOSE)
    given = inputs()
    labels = given["input_ids"].masked_fill(given["input_ids"] == SLOT, -100)
    torch.testing.assert_close(ours(**given, labels=labels).loss, theirs(**given, labels=labels).loss, **CLOSE)
    options = {"max_new_tokens": 8, "do_sample": False, "suppress_tokens": [SLOT], "pad_token_id": 0}
    assert ours.generate(**given, **options).tolist() == theirs.generate(**given, **options).tolist()


def test_the_count_of_the_published_size_is_that_of_transformers():
    with torch.device("meta"):
        theirs = LlavaForConditionalGeneration(LlavaConfig(text_config={"model_type": "llama", "vocab_size": 32064}))
    assert sum(parameter.numel() for parameter in theirs.parameters()) == 7_063_427_072


def test_weights_of_another_architecture_are_named_five_of_them(tmp_path):
    llava().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    save_file({name.replace("multi_modal_projector", "mm_projector"): one for name, one in weights.items()}, file)
    with pytest.raises(CheckpointError) as error:
        load_llava(tmp_path)
    said = str(error.value)
    assert "does not hold a LlavaForConditionalGeneration" in said
    assert "4 missing" in said and "model.multi_modal_projector.linear_1.bias" in said
    assert "mm_projector.linear_1.bias" in said and said.count("linear_") == 5


def test_a_folder_of_another_model_is_refused(tmp_path):
    causal_model().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="holds a 'llama', not a 'llava'"):
        load_llava(tmp_path)
    with pytest.raises(CheckpointError):
        load_llava(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"connector": "linear"}, "the connector linear, where it has mlp2x_gelu"),
        ({"vision_feature_layer": None}, "the encoder's final tokens; set vision_feature_layer"),
        ({"vision_feature_select_strategy": "class"}, "the class token alone; read 'default' or 'full'"),
        ({"image_token_id": VOCABULARY}, "an image token with id 40 outside the vocabulary of 40 entries"),
    ],
)
def test_a_part_that_the_layout_has_no_place_for_is_named(fields, said, tmp_path):
    with pytest.raises(UserError, match=said):
        save_llava(tiny_model(**fields), tmp_path)


def test_growing_the_vocabulary_makes_room_for_the_image_token(tmp_path):
    model = tiny_model(image_token_id=VOCABULARY)
    ids = torch.tensor([[BEGIN, *[VOCABULARY] * len(PICTURE), *words(3)]])
    before = model(ids, pixel_values=pixels(1)).logits
    model.resize_token_embeddings(VOCABULARY + 1)
    save_llava(model, tmp_path)
    theirs = LlavaForConditionalGeneration.from_pretrained(tmp_path)
    torch.testing.assert_close(theirs(input_ids=ids, pixel_values=pixels(1)).logits[..., :VOCABULARY], before, **CLOSE)
