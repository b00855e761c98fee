"""Models around a causal language model: its table of words and its head are theirs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tessera.errors import UserError
from tessera.models.adapters import add_lora
from tests.models import injected_tiny, lvlm_tiny, vlgpt_tiny

MODELS = {"vlgpt": vlgpt_tiny.tiny_model, "lvlm": lvlm_tiny.tiny_model, "injected": injected_tiny.tiny_model}


@pytest.mark.parametrize("kind", MODELS)
def test_a_table_and_a_head_that_are_given_are_the_language_models_own(kind):
    model = MODELS[kind]()
    table, head = nn.Embedding(50, lvlm_tiny.D), nn.Linear(lvlm_tiny.D, 50, bias=False)
    model.set_input_embeddings(table)
    model.set_output_embeddings(head)
    for one in (model, model.language_model):
        assert one.get_input_embeddings() is table
        assert one.get_output_embeddings() is head


@pytest.mark.parametrize("kind", MODELS)
def test_no_folder_is_written_while_adapters_stand_beside_the_weights(kind, tmp_path):
    model = MODELS[kind]()
    add_lora(model.language_model, rank=2, alpha=4)
    with pytest.raises(UserError, match="call merge_adapters"):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(("kind", "fields"), [("lvlm", {}), ("injected", injected_tiny.FIELDS)])
def test_a_model_of_ready_parts_has_their_weights_and_ends_answers_as_the_language_model_does(kind, fields):
    given = MODELS[kind]()
    language = given.language_model
    language.generation_config.max_new_tokens = 7
    made = type(given).from_parts(given.vision, language, **fields)
    assert made.vision is given.vision and made.language_model is language
    assert made.config.text_config is language.config
    assert made.generation_config.max_new_tokens == 7
    assert torch.equal(made.get_output_embeddings().weight, language.get_output_embeddings().weight)
