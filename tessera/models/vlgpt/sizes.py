"""Adapters of VL-GPT and what each of its parts weighs, counted without weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from tessera.models.vlgpt.configuration import VLGPTConfig
from tessera.models.vlgpt.modeling import VLGPTForConditionalGeneration

if TYPE_CHECKING:
    from peft import LoraConfig

# Every linear layer inside the language model's blocks: what peft calls "all-linear", kept off the other
# parts.
LORA_TARGETS = r".*language_model\.model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj"


def lora_config(config: VLGPTConfig) -> LoraConfig:
    """The adapters of stages B and C, for `peft.get_peft_model(model, ...)`."""
    from peft import LoraConfig  # takes seconds to import, which only training pays for

    return LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=LORA_TARGETS,
    )


def component_sizes(config: VLGPTConfig) -> dict[str, int]:
    """Parameters of each part, built on the meta device.

    `total` is the sum that the paper prints: the six parts before it. `trained_in_pretraining` is LoRA and
    the regression head; `image_token_rows` is our addition, counted apart from both.
    """
    from peft import inject_adapter_in_model

    with torch.device("meta"):
        model = VLGPTForConditionalGeneration(config)
        plain = _count(model.language_model)
        inject_adapter_in_model(lora_config(config), model)
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
