"""What each part of VL-GPT weighs, counted without weights."""

from __future__ import annotations

import torch
from torch import nn

from tessera.models.vlgpt.adapters import add_adapters
from tessera.models.vlgpt.configuration import VLGPTConfig
from tessera.models.vlgpt.modeling import VLGPTForConditionalGeneration


def component_sizes(config: VLGPTConfig) -> dict[str, int]:
    """Parameters of each part, built on the meta device.

    `total` is the sum that the paper prints: the six parts before it. `trained_in_pretraining` is LoRA and
    the regression head; `image_token_rows` is our addition, counted apart from both.
    """
    with torch.device("meta"):
        model = VLGPTForConditionalGeneration(config)
        plain = _count(model.language_model)
        add_adapters(model)
    parts = {
        "language_model": plain,
        "vision_encoder": _count(model.image_tokenizer.vision),
        "image_tokenizer": _count(model.image_tokenizer.tokenizer),
        "image_detokenizer": _count(model.image_tokenizer.detokenizer),
        "lora": _count(model.language_model) - plain,
        "regression_head": _count(model.regression_head),
    }
    return {
        **parts,
        "total": sum(parts.values()),
        "trained_in_pretraining": parts["lora"] + parts["regression_head"],
        "image_token_rows": 0 if model.image_token_rows is None else _count(model.image_token_rows),
        "positions_per_image": config.num_image_positions + 2,
    }


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
