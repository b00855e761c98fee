"""Low-rank adapters of stages B and C (LoRA): put on the language model, and merged into it when training has ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn
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


def has_adapters(model: nn.Module) -> bool:
    """Whether adapters stand beside the weights of `model`."""
    return any(".lora_" in name for name, _ in model.named_parameters())


def add_adapters(model: PreTrainedModel) -> None:
    """Put new adapters on the language model of `model`. They change nothing yet: their B is zero."""
    from peft import inject_adapter_in_model

    inject_adapter_in_model(lora_config(model.config), model)  # type: ignore[arg-type]


def merge_adapters(model: nn.Module) -> None:
    """Add each adapter to the weight that it stands beside and take it away; the outputs stay what they were.

    What is left is the plain model. Without adapters nothing happens.
    """
    from peft.tuners.lora import LoraLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            model.set_submodule(name, module.get_base_layer())
    if hasattr(model, "peft_config"):  # else peft would count these adapters beside later ones
        del model.peft_config
