"""Counts on the meta device."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from tessera.layers.encoder import EncoderBlock
from tessera.study.counting import count, macs, prefill
from tests.models.lvlm_tiny import BEGIN, PICTURE, TEXT, D, N, tiny_model, words


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 4, stride=4)
        self.block = EncoderBlock(8, 2, 16)
        self.fixed = nn.Parameter(torch.zeros(5), requires_grad=False)
        self.again = self.block.norm1  # counted once

    def forward(self, pixels):
        return self.block(self.convolution(pixels).flatten(2).transpose(1, 2))


def test_counts_equal_those_by_hand():
    with torch.device("meta"):
        model = Small()
        counted = count(model, {"pixels": torch.empty(1, 3, 32, 16)})
    tokens, width = 8 * 4, 8
    block = 4 * width**2 + 4 * width + 2 * width * 16 + 16 + width + 4 * width
    products = tokens * (4 * width**2 + 2 * width * 16) + 2 * tokens**2 * width + tokens * width * 3 * 16
    assert counted["trainable"] == 3 * 8 * 16 + 8 + block
    assert counted["parameters"] == counted["trainable"] + 5
    assert counted["gmacs"] == pytest.approx(products / 1e9)
    assert set(count(model)) == {"parameters", "trainable"}


def test_counting_leaves_each_module_in_its_mode():
    model = Small().train()
    model.convolution.eval()
    macs(model, {"pixels": torch.zeros(1, 3, 8, 8)})
    assert model.training and model.block.training and not model.convolution.training


@pytest.mark.light("fourier-vlm", "size")
def test_a_layer_taken_so_many_times_is_the_prefill_of_the_whole_model():
    config = LlamaConfig(
        hidden_size=32, intermediate_size=80, num_hidden_layers=5, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=100,
    )  # fmt: skip
    with torch.device("meta"):
        mask = torch.empty(1, 1, 7, 7, dtype=torch.bool)
        given = {"inputs_embeds": torch.empty(1, 7, 32), "attention_mask": mask, "use_cache": False}
        whole = 2 * macs(AutoModelForCausalLM.from_config(config), given)
    assert prefill(config, 7) == whole
    a_layer = 32 * (2 * 32 + 2 * 16 + 3 * 80) * 7 + 2 * 7 * 7 * 32
    assert whole == 2 * (5 * a_layer + 7 * 32 * 100)
    assert config.num_hidden_layers == 5


@pytest.mark.light("token-transforming", "size")
def test_a_prefill_with_fewer_positions_in_its_later_layers_is_that_of_a_model_with_a_reducer_there():
    text = {"model_type": "llama", **TEXT, "num_hidden_layers": 4}
    model = tiny_model(text_config=text, reducer="random", keep_tokens=1, reduce_after=3)
    model.language_model.set_attn_implementation("eager")  # whose products are counted on this device too
    ids, kept = torch.tensor([[BEGIN, *PICTURE, *words(6)]]), 1 + 1 + 6
    given = {"input_ids": ids, "image_embeds": torch.zeros(1, N, D), "logits_to_keep": kept}
    config = model.config.text_config
    wanted = prefill(config, ids.shape[1], left=kept, after=3)
    assert 2 * macs(model, given) == wanted
    assert prefill(config, ids.shape[1], left=kept) == prefill(config, kept) < wanted < prefill(config, ids.shape[1])
