"""A VL-GPT small enough for every test: 16-pixel pictures, 4 visual embeddings of width 32, 40 words."""

from __future__ import annotations

import torch
from transformers import CLIPVisionConfig, LlamaConfig

from tessera.models.vlgpt import (
    CausalTokenizerConfig,
    CausalTokenizerModel,
    VLGPTConfig,
    VLGPTForConditionalGeneration,
)

PAD, BEGIN, END, START, STOP, SLOT = range(6)
N, D, VOCABULARY = 4, 32, 40


def vision_config(**fields):
    sizes = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    return CLIPVisionConfig(image_size=16, patch_size=8, **{**sizes, **fields})


def text_config(**fields):
    sizes = {"hidden_size": D, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"pad_token_id": PAD, "bos_token_id": BEGIN, "eos_token_id": END}
    sizes |= {"vocab_size": VOCABULARY, "max_position_embeddings": 128}
    return LlamaConfig(**{**sizes, **ids, **fields})


def tokenizer_config(**fields):
    sizes = {"num_embeddings": N, "embed_width": D, "width": 24, "depth": 2, "heads": 2, "mlp_width": 48}
    conditions = {"image_condition_tokens": 3, "image_condition_width": 10}
    conditions |= {"text_condition_tokens": 5, "text_condition_width": 12}
    return CausalTokenizerConfig(vision_config=vision_config(), **{**sizes, **conditions, **fields})


def tiny_config(text=None, tokenizer=None, **fields):
    ids = {"image_start_id": START, "image_end_id": STOP, "image_placeholder_id": SLOT}
    return VLGPTConfig(
        text_config=text or text_config(),
        tokenizer_config=tokenizer or tokenizer_config(),
        **{**ids, **fields},
    )


def tiny_model(seed=0, **fields) -> VLGPTForConditionalGeneration:
    torch.manual_seed(seed)
    return VLGPTForConditionalGeneration(tiny_config(**fields))


def tiny_tokenizer(seed=0, **fields) -> CausalTokenizerModel:
    torch.manual_seed(seed)
    return CausalTokenizerModel(tokenizer_config(**fields))


def pixels(count, seed=0):
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def words(count, seed=0):
    """Ordinary words, none of them special."""
    return torch.randint(6, VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


PICTURE = [START, *[SLOT] * N, STOP]


def batch(*rows: list[int], start: int = 0):
    """Rows of ids of one length, everything learned except the first position and placeholders' labels."""
    input_ids = torch.tensor(rows)
    visual = input_ids == SLOT
    labels = input_ids.masked_fill(visual, -100)
    labels[:, : start + 1] = -100
    visual[:, : start + 1] = False
    return {"input_ids": input_ids, "labels": labels, "visual_target": visual}
