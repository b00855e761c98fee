"""Low-rank adapters on any causal language model."""

from __future__ import annotations

import pytest
import torch

from tessera.errors import UserError
from tessera.models.adapters import add_lora, has_adapters, merge_adapters
from tessera.models.lvlm import LVLMForConditionalGeneration, save_llava
from tessera.train.optim import split_for_muon
from tests.models.lvlm_tiny import BEGIN, PICTURE, SLOT, D, causal_model, pixels, tiny_config, words

KINDS = {"llama": {}, "gpt2": {}, "opt": {"ffn_dim": 48, "word_embed_proj_dim": D, "dropout": 0.0}}
IDS = torch.tensor([[BEGIN, *PICTURE, *words(5)]])


def adapted(kind, **options):
    config = tiny_config()
    model = LVLMForConditionalGeneration(config, language_model=causal_model(kind, **KINDS[kind])).eval()
    before = model(IDS, pixel_values=pixels(1)).logits
    add_lora(model.language_model, rank=2, alpha=4, **options)
    return model, before


@pytest.mark.parametrize("kind", KINDS)
def test_new_adapters_change_nothing_and_of_the_language_model_they_alone_learn(kind):
    model, before = adapted(kind)
    torch.testing.assert_close(model(IDS, pixel_values=pixels(1)).logits, before)
    model(IDS, labels=IDS.masked_fill(IDS == SLOT, -100), pixel_values=pixels(1)).loss.backward()
    learned = {name for name, weight in model.named_parameters() if weight.grad is not None}
    language = {name for name in learned if name.startswith("language_model.")}
    assert language and all(".lora_" in name for name in language)
    assert "connector.mlp.fc1.weight" in learned
    assert not any("head" in name for name in language)


def test_the_head_learns_and_merges_where_it_is_asked_for():
    model, before = adapted("llama", head=True)
    optimiser = torch.optim.SGD([one for one in model.language_model.parameters() if one.requires_grad], lr=1.0)
    model(IDS, labels=IDS.masked_fill(IDS == SLOT, -100), pixel_values=pixels(1)).loss.backward()
    optimiser.step()
    head = model.get_output_embeddings()
    assert any(weight.grad is not None and weight.grad.any() for weight in head.parameters())
    trained = model(IDS, pixel_values=pixels(1)).logits
    assert not torch.equal(trained, before)
    merge_adapters(model)
    torch.testing.assert_close(model(IDS, pixel_values=pixels(1)).logits, trained, atol=1e-5, rtol=1e-5)


def test_a_head_that_is_tied_to_the_embeddings_of_words_is_refused():
    with pytest.raises(UserError, match="the head is tied to the embeddings of words"):
        add_lora(causal_model("gpt2"), rank=2, alpha=4, head=True)


@pytest.mark.parametrize("kind", KINDS)
def test_merged_adapters_leave_a_plain_model_with_the_same_scores_that_takes_others(kind, tmp_path):
    model, before = adapted(kind)
    for name, weight in model.named_parameters():
        if ".lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(0))
    trained = model(IDS, pixel_values=pixels(1)).logits
    assert (trained - before).abs().max() > 1e-3
    for save in (model.save_pretrained, lambda folder: save_llava(model, folder)):
        with pytest.raises(UserError, match="call merge_adapters"):
            save(tmp_path)
    merge_adapters(model)
    assert not has_adapters(model)
    torch.testing.assert_close(model(IDS, pixel_values=pixels(1)).logits, trained, atol=1e-5, rtol=1e-5)
    model.save_pretrained(tmp_path)
    again = LVLMForConditionalGeneration.from_pretrained(tmp_path)
    torch.testing.assert_close(again(IDS, pixel_values=pixels(1)).logits, trained, atol=1e-5, rtol=1e-5)
    add_lora(model.language_model, rank=3, alpha=3)
    assert has_adapters(model)


def test_an_encoder_takes_adapters_too_and_muon_leaves_them_to_adamw():
    model, _ = adapted("llama")
    shown = pixels(1)
    before = model.vision(shown).tokens
    add_lora(model.vision, rank=2, alpha=4)
    torch.testing.assert_close(model.vision(shown).tokens, before)
    hidden, rest = (
        {name for name, weight in model.named_parameters() if any(weight is one for one in some)}
        for some in split_for_muon(model)
    )
    assert {name.partition(".")[0] for name in rest if ".lora_" in name} == {"vision", "language_model"}
    assert hidden and not any(".lora_" in name for name in hidden)
    merge_adapters(model)
    assert not has_adapters(model)


def test_a_rank_of_none_and_adapters_on_adapters_are_refused():
    model, _ = adapted("llama")
    with pytest.raises(UserError, match="has adapters already"):
        add_lora(model.language_model, rank=2, alpha=4)
    with pytest.raises(UserError, match="the rank of adapters is 0"):
        add_lora(causal_model(), rank=0, alpha=4)
