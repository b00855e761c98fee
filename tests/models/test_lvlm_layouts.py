"""SigLIP eyes in LLaVA's layout, and the layout of LLaVA-NeXT, both ways, against the classes of transformers."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoProcessor,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    SiglipVisionConfig,
    SiglipVisionModel,
)

import tessera
from tessera.data.tiling import SheetPixels
from tessera.errors import CheckpointError, DataError, UserError
from tessera.models.lvlm import load_llava, save_llava
from tessera.vision.registry import create
from tessera.vision_chat import VisionChat
from tests.models.lvlm_tiny import BEGIN, SLOT, TEXT, VISION, llava, pixels, spread, tiny_config, tiny_model, words
from tests.vision_chat_tiny import noise, vision_chat
from tests.vision_chat_tiny import words as spoken

CLOSE = {"atol": 1e-5, "rtol": 0}
SIGLIP = {key: value for key, value in VISION.items() if key != "model_type"}
PINPOINTS = [[16, 32], [32, 16], [32, 32], [48, 16]]
SIZES = [(20, 50), (40, 40), (70, 20)]  # height and width: 2, 4 and 3 tiles beside the whole picture
EYES = {"clip": VISION, "siglip": {"model_type": "siglip_vision_model", **SIGLIP}}


def siglip(**fields):
    given = {"vision_feature_select_strategy": "full", **fields}
    return llava(vision={**EYES["siglip"]}, **given)


def llava_next(eyes="clip", **text):
    fields = {
        "vision_feature_select_strategy": "default" if eyes == "clip" else "full",
        "image_grid_pinpoints": PINPOINTS,
    }
    config = LlavaNextConfig(
        vision_config=EYES[eyes], text_config={"model_type": "llama", **TEXT, "max_position_embeddings": 256, **text},
        image_token_index=SLOT, **fields,
    )  # fmt: skip
    return spread(LlavaNextForConditionalGeneration(config))


@torch.no_grad()
@pytest.mark.parametrize("head", [True, False])
def test_a_siglip_encoder_gives_the_states_and_the_pooled_vector_of_transformers(head, tmp_path):
    theirs = spread(SiglipVisionModel(SiglipVisionConfig(**SIGLIP, vision_use_head=head)))
    theirs.save_pretrained(tmp_path)
    ours = create(str(tmp_path))
    wanted, seen = (model(pixels(2), output_hidden_states=True) for model in (theirs, ours))
    torch.testing.assert_close(seen.tokens, wanted.last_hidden_state, **CLOSE)
    torch.testing.assert_close(seen.pooled, wanted.pooler_output if head else wanted.last_hidden_state.mean(1), **CLOSE)
    torch.testing.assert_close(seen.hidden_states[-2], wanted.hidden_states[-2], **CLOSE)
    torch.testing.assert_close(ours.final_norm(seen.hidden_states[-1]), wanted.last_hidden_state, **CLOSE)
    larger = ours(pixels(1, size=24))
    assert larger.grid == (3, 3) and larger.tokens.shape == (1, 9, ours.width)


@torch.no_grad()
@pytest.mark.parametrize("layer", [-2, [-2, -1]])
def test_a_llava_with_siglip_eyes_is_read_and_written_with_equal_logits(layer, tmp_path):
    theirs = siglip(vision_feature_layer=layer)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_llava(tmp_path / "theirs")
    picture = [SLOT] * 4
    ids = torch.tensor([[BEGIN, *picture, *words(3), *picture, *words(2, 1)]])
    given = {"input_ids": ids, "pixel_values": pixels(2)}
    wanted = theirs(**given).logits
    torch.testing.assert_close(ours(**given).logits, wanted, **CLOSE)
    save_llava(ours, tmp_path / "ours")
    back = LlavaForConditionalGeneration.from_pretrained(tmp_path / "ours")
    assert back.config.vision_feature_select_strategy == "full"
    torch.testing.assert_close(back(**given).logits, wanted, **CLOSE)


def test_a_siglip_without_its_first_patch_is_refused_with_what_to_set(tmp_path):
    siglip(vision_feature_select_strategy="default").save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has no class token, so that .* leaves out its first patch; set it to 'full'"):
        load_llava(tmp_path)


@torch.no_grad()
def test_a_chat_with_siglip_eyes_is_read_by_transformers_and_its_processor(tmp_path):
    eyes = {"model_type": "tessera-published-vision", "vision_config": EYES["siglip"]}
    ours = vision_chat(vision_config=eyes)
    ours.save(tmp_path)
    theirs, processor = LlavaForConditionalGeneration.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    same_words(ours, theirs, processor, noise(1, 40, 30))
    assert tessera.load(tmp_path).answer(noise(1, 40, 30), "what?", 6) == ours.answer(noise(1, 40, 30), "what?", 6)


def same_words(ours, theirs, processor, picture):
    """What ours answers about a picture, transformers and its processor say of the same folder."""
    text = processor.apply_chat_template([{"role": "user", "content": "<image>\nwhat?"}], add_generation_prompt=True)
    inputs = processor(text=text, images=picture, return_tensors="pt")
    said = theirs.generate(**inputs, max_new_tokens=6, do_sample=False)
    words = processor.decode(said[0, inputs.input_ids.shape[1] :], skip_special_tokens=True).strip()
    assert words == ours.answer(picture, "what?", max_new_tokens=6)


def on_sheets(model):
    """A prompt about pictures of SIZES, their tiles, and their sizes."""
    runs = [[SLOT] * model.num_picture_tokens(*size) for size in SIZES]
    ids = torch.tensor([[BEGIN, *runs[0], *words(2), *runs[1], *runs[2], *words(3, 1)]])
    return {"input_ids": ids, "pixel_values": pixels(3 + 5 + 4), "image_sizes": torch.tensor(SIZES)}


@torch.no_grad()
@pytest.mark.parametrize("eyes", EYES)
def test_a_folder_of_llava_next_is_read_and_written_with_equal_logits(eyes, tmp_path):
    theirs = llava_next(eyes)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_llava(tmp_path / "theirs")
    given = on_sheets(ours)
    stacked = [one.numpy() for one in given["pixel_values"].split([3, 5, 4])]
    padded = torch.zeros(3, 5, 3, 16, 16)
    for place, tiles in enumerate(stacked):
        padded[place, : len(tiles)] = torch.from_numpy(tiles)
    wanted = theirs(**{**given, "pixel_values": padded}).logits
    torch.testing.assert_close(ours(**given).logits, wanted, **CLOSE)
    save_llava(ours, tmp_path / "ours")
    back = LlavaNextForConditionalGeneration.from_pretrained(tmp_path / "ours")
    torch.testing.assert_close(back(**{**given, "pixel_values": padded}).logits, wanted, **CLOSE)
    first, second = (load_file(tmp_path / one / "model.safetensors") for one in ("theirs", "ours"))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    options = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": [SLOT], "pad_token_id": 0}
    told = theirs.generate(**{**given, "pixel_values": padded}, **options)
    assert ours.generate(**given, **options).tolist() == told.tolist()


@torch.no_grad()
def test_a_chat_on_sheets_is_read_by_transformers_and_answers_the_same(tmp_path):
    read = spoken()
    slot = read.convert_tokens_to_ids("<image>")
    text = {**TEXT, "vocab_size": len(read), "max_position_embeddings": 600, "eos_token_id": read.eos_token_id}
    model = tiny_model(text_config={"model_type": "llama", **text}, image_token_id=slot, image_grid_pinpoints=PINPOINTS)
    ours = VisionChat(model, read, SheetPixels(16, pinpoints=tuple((h, w) for h, w in PINPOINTS)))
    ours.save(tmp_path)
    theirs = LlavaNextForConditionalGeneration.from_pretrained(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    for number, (height, width) in enumerate(SIZES):
        same_words(ours, theirs, processor, noise(number, width, height))
    back = tessera.load(tmp_path)
    assert back.pixels == ours.pixels
    shown = [noise(3, 50, 20), noise(4, 30, 60)]
    assert back.answer([shown], ["which?"], max_new_tokens=6) == ours.answer([shown], ["which?"], max_new_tokens=6)


def test_pictures_on_sheets_need_their_sizes_and_as_many_tiles():
    model = tiny_model(image_grid_pinpoints=PINPOINTS)
    with pytest.raises(UserError, match="on sheets of tiles; give image_sizes"):
        model.encode_images(pixels(3))
    with pytest.raises(DataError, match="4 tiles were given for pictures that have 3"):
        model.encode_images(pixels(4), torch.tensor(SIZES[:1]))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"image_grid_pinpoints": [[16, 20]]}, r"a sheet of \[16, 20\] pixels is not made of whole tiles of 16"),
        ({"image_grid_pinpoints": PINPOINTS, "reducer": "pool", "keep_side": 1}, "leave out the reducer"),
    ],
)
def test_sheets_that_cannot_be_cut_or_are_reduced_are_refused(fields, said):
    from tessera.models.lvlm import LVLMForConditionalGeneration

    with pytest.raises(UserError, match=said):
        LVLMForConditionalGeneration(tiny_config(**fields))


def test_a_folder_of_neither_is_named(tmp_path):
    SiglipVisionModel(SiglipVisionConfig(**SIGLIP)).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="holds a 'siglip_vision_model', not a 'llava' or 'llava_next'"):
        load_llava(tmp_path)
