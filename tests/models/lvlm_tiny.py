"""A language model with eyes small enough for every test: 16-pixel pictures of 4 tokens, width 32, 40 words."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlavaConfig, LlavaForConditionalGeneration

from tessera.models.lvlm import LVLMConfig, LVLMForConditionalGeneration

PAD, BEGIN, END, SLOT = 0, 1, 2, 5
N, D, VOCABULARY, CONTEXT = 4, 32, 40, 64
VISION = {
    "model_type": "clip_vision_model", "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 2, "image_size": 16, "patch_size": 8,
}  # fmt: skip
TEXT = {
    "hidden_size": D, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4,
    "intermediate_size": 48, "vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT, "pad_token_id": PAD,
    "bos_token_id": BEGIN, "eos_token_id": END,
}  # fmt: skip
PICTURE = [SLOT] * N


def spread(model, seed=0):
    """Weights large enough that differences show, the same for a seed."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    return model.eval()


def tiny_config(**fields):
    vision = {"model_type": "tessera-published-vision", "vision_config": VISION}
    fields = {"image_token_id": SLOT, "text_config": {"model_type": "llama", **TEXT}, **fields}
    return LVLMConfig(**{"vision_config": vision, **fields})


def tiny_model(**fields) -> LVLMForConditionalGeneration:
    return spread(LVLMForConditionalGeneration(tiny_config(**fields)))


def causal_model(kind="llama", **fields):
    """A causal language model of transformers of the usual tiny size."""
    return spread(AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**TEXT, **fields})))


def llava(vision=None, text=None, **fields) -> LlavaForConditionalGeneration:
    vision, text = {**VISION, **(vision or {})}, {"model_type": "llama", **TEXT, **(text or {})}
    fields = {"image_token_index": SLOT, "image_seq_length": N, **fields}
    return spread(LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, **fields)))


def pixels(count, seed=0, size=16):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def words(count, seed=0):
    """Ordinary words, none of them special."""
    return torch.randint(6, VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def left_padded(*rows):
    """Ids and mask [B, L] of prompts of different lengths."""
    length = max(map(len, rows))
    ids = torch.tensor([[PAD] * (length - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}
