"""A language model with injected class tokens small enough for every test: 6 decoder layers, 3 class tokens."""

from __future__ import annotations

import torch

from tessera.models.injected import InjectedLMConfig, InjectedLMForConditionalGeneration
from tests.models.lvlm_tiny import TEXT, VISION, D, spread, words

LAYERS, LEVELS, START, END, P = 6, 3, 2, 5, 3
FIELDS = {"levels": LEVELS, "start": START, "end": END, "prompt_length": P}
LANGUAGE = {"opt": {"ffn_dim": 48, "word_embed_proj_dim": D}, "falcon": {"alibi": False}, "gemma2": {"head_dim": 8}}


def tiny_config(kind="opt", text=None, **fields) -> InjectedLMConfig:
    given = {"model_type": kind, **TEXT, "num_hidden_layers": LAYERS, **LANGUAGE.get(kind, {}), **(text or {})}
    vision = {"model_type": "tessera-published-vision", "vision_config": {**VISION, "num_hidden_layers": 4}}
    return InjectedLMConfig(**{"vision_config": vision, "text_config": given, **FIELDS, **fields})


def tiny_model(kind="opt", **fields) -> InjectedLMForConditionalGeneration:
    return spread(InjectedLMForConditionalGeneration(tiny_config(kind, **fields)))


def sentences(*seeds, length=7) -> torch.Tensor:
    """int64 [B, L], a row for each seed."""
    return torch.tensor([words(length, seed) for seed in seeds])
