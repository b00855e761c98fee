"""Low-rank adapters of stages B and C (LoRA); `tessera.models.adapters` merges them when training has ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from transformers import PreTrainedModel

from tessera.models.vlgpt.configuration import VLGPTConfig

if TYPE_CHECKING:
    from peft import LoraConfig

# Every linear layer inside the language model's blocks: what peft calls "all-linear", kept off the other parts.
LORA_TARGETS = r".*language_model\.model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj"


def lora_config(config: VLGPTConfig) -> LoraConfig:
    """The adapters of stages B and C, for `add_adapters` or `peft.get_peft_model`."""
    from peft import LoraConfig  # takes seconds to import, which only training pays for

    return LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=LORA_TARGETS,
    )


def add_adapters(model: PreTrainedModel) -> None:
    """Put new adapters on the language model of `model`. They change nothing yet: their B is zero."""
    from peft import inject_adapter_in_model

    inject_adapter_in_model(lora_config(model.config), model)  # type: ignore[arg-type]
