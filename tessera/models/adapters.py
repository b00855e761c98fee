"""Low-rank adapters (LoRA) beside the weights of a model, and merged into it when training has ended, or kept
as the two factors of what they add."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tessera.errors import CheckpointError, UserError, reason


def add_lora(model: PreTrainedModel, *, rank: int, alpha: int, dropout: float = 0.0, head: bool = False) -> None:
    """Put new adapters on every linear layer of a causal language model or an image encoder, and freeze the rest of it.
    They change nothing yet: their B is zero. Muon leaves them to AdamW, for what each adds is no whole matrix.

    Args:
        head: on the layer that scores words too: those that the model has never had to say stay out of reach else.

    Raises:
        UserError: a rank below 1, adapters that are there already, or a head that is asked for and tied to the
            embeddings of words.
    """
    from peft import LoraConfig, inject_adapter_in_model  # takes seconds to import, which only training pays for
    from peft.tuners.lora import LoraLayer

    if rank < 1:
        raise UserError(f"the rank of adapters is {rank}; it is at least 1")
    if has_adapters(model):
        raise UserError("the model has adapters already; call merge_adapters(model) before adding others")
    scores: Any = model.get_output_embeddings()
    words: Any = model.get_input_embeddings() if head else None
    if head and scores.weight is words.weight:
        raise UserError("the head is tied to the embeddings of words, which adapters cannot part; leave the head out")
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and (head or module is not scores)
    }
    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(layers),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in layers.values()),  # GPT-2's are transposed
    )  # fmt: skip
    inject_adapter_in_model(config, model)
    for module in model.modules():
        if isinstance(module, LoraLayer):
            for part in (module.lora_A, module.lora_B):
                part.no_muon = True  # type: ignore[assignment]


def has_adapters(model: nn.Module) -> bool:
    """Whether adapters stand beside the weights of `model`."""
    return any(".lora_" in name for name, _ in model.named_parameters())


def refuse_adapters(model: nn.Module) -> None:
    """Raise UserError where adapters are not merged yet: beside them weights have names that no plain model loads."""
    if has_adapters(model):
        raise UserError("the model still has its adapters; call merge_adapters(model) before saving it")


def merge_adapters(model: nn.Module) -> None:
    """Add each adapter to the weight that it stands beside and take it away; the outputs stay what they were.

    What is left is the plain model. Without adapters nothing happens.
    """
    from peft.tuners.lora import LoraLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            model.set_submodule(name, module.get_base_layer())
    for module in list(model.modules()):
        if hasattr(module, "peft_config"):  # else peft would count these adapters beside later ones
            del module.peft_config


def factors(model: nn.Module) -> dict[str, Tensor]:
    """What the adapters add, as two matrices for each weight that one stands beside: NAME.down [r, in] and NAME.up
    [out, r], whose product up @ down `add_factors` adds to the plain model."""
    from peft.tuners.lora import LoraLayer

    found: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            (adapter,) = module.lora_A
            down, up = (cast(nn.Linear, held[adapter]) for held in (module.lora_A, module.lora_B))
            found[f"{name}.down"] = down.weight.detach()
            found[f"{name}.up"] = up.weight.detach() * float(module.scaling[adapter])
    return found


@torch.no_grad()
def add_factors(model: nn.Module, found: Mapping[str, Tensor]) -> None:
    """Add to the weights of `model` what `factors` gave, in the precision of the weights.

    Raises:
        CheckpointError: `found` names a layer that the model has not, or has another shape than that.
    """
    for name in sorted({key.rpartition(".")[0] for key in found}):
        try:
            weight: Any = model.get_submodule(name).weight
            added = found[f"{name}.up"].to(weight) @ found[f"{name}.down"].to(weight)
            weight.add_(added.T if isinstance(model.get_submodule(name), Conv1D) else added)
        except (AttributeError, KeyError, RuntimeError) as error:
            raise CheckpointError(f"the weights of {name!r} do not fit the language model: {reason(error)}") from error
