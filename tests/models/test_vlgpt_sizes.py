"""VL-GPT at its published size, without weights."""

from __future__ import annotations

import pytest
import torch

from tessera.models.vlgpt import VLGPTConfig, VLGPTForConditionalGeneration, component_sizes
from tests.models.vlgpt_tiny import tiny_config

PUBLISHED = {
    "language_model": 6_738_415_616,
    "vision_encoder": 303_179_776,
    "image_tokenizer": 205_793_280,
    "image_detokenizer": 207_427_072,
    "lora": 79_953_920,
    "regression_head": 16_777_216,
    "total": 7_551_546_880,
    "trained_in_pretraining": 96_731_136,
    "image_token_rows": 16_384,
    "positions_per_image": 34,
}


@pytest.mark.light("vl-gpt", "size")
def test_every_published_component_counts_exactly():
    assert component_sizes(VLGPTConfig()) == PUBLISHED


@pytest.mark.light("vl-gpt", "size")
def test_a_narrow_decoder_gives_the_alternative_total():
    narrow = {"width": 768, "heads": 12, "mlp_width": 3072}
    config = VLGPTConfig(tokenizer_config=narrow, text_config={"num_hidden_layers": 1})  # the rest is as above
    sizes, stacks = component_sizes(config), ("image_tokenizer", "image_detokenizer")
    assert PUBLISHED["total"] + sum(sizes[s] - PUBLISHED[s] for s in stacks) == 7_377_464_320


@pytest.mark.light("vl-gpt", "size")
def test_published_model_maps_pictures_to_32_embeddings_on_the_meta_device():
    with torch.device("meta"):
        model = VLGPTForConditionalGeneration(VLGPTConfig(text_config={"num_hidden_layers": 1}))
        embeds = model.encode_images(torch.empty(2, 3, 224, 224))
        conditions = model.decode_images(embeds)
    assert embeds.shape == (2, 32, 4096)
    assert conditions.image.shape == (2, 16, 768) and conditions.text.shape == (2, 77, 768)
    assert all(p.device.type == "meta" for p in model.parameters())


def test_a_model_made_on_the_meta_device_equals_in_names_one_made_here():
    with torch.device("meta"):
        empty = VLGPTForConditionalGeneration(tiny_config())
    here = VLGPTForConditionalGeneration(tiny_config())
    shapes = [{n: p.shape for n, p in m.state_dict().items()} for m in (empty, here)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("field", [{"lora_rank": "many"}, {"image_token_rows": "none"}])
def test_a_configuration_field_of_a_wrong_type_is_refused(field):
    with pytest.raises(Exception, match=next(iter(field))):
        VLGPTConfig(**field)
