"""The layers of any causal language model of transformers, and what each is given.

Legend: B rows, L positions, d width.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from tessera.errors import UserError
from tessera.models.lvlm.language import takes_positions

Enter = Callable[[Tensor, dict[str, Any]], tuple[Tensor, dict[str, Any]]]

# What layers are given beside their states. Anything else of the words' length would have to change with them.
_KNOWN = ("attention_mask", "position_ids", "position_embeddings", "past_key_values", "use_cache", "cache_position")


def decoder_of(model: PreTrainedModel) -> tuple[nn.Module, nn.ModuleList]:
    """The module that runs the layers of a language model, and the layers.

    Raises:
        UserError: it counts positions itself, or its layers cannot be told from other lists of modules.
    """
    kind, depth = model.config.model_type, model.config.num_hidden_layers
    found = [
        (owner, child)
        for owner in model.base_model.modules()
        for child in owner.children()
        if isinstance(child, nn.ModuleList) and len(child) == depth
    ]
    if len(found) != 1 or not takes_positions(model):
        raise UserError(
            f"nothing can be changed between the layers of a {kind}; take a LLaMA, OPT, GPT-2 or a like model"
        )
    return found[0]


def at_door(layer: nn.Module, enter: Enter) -> RemovableHandle:
    """Before each call of `layer`, `enter` is handed its states [B, L, d] and the rest by name, and says what the layer
    is given instead.

    Raises:
        UserError: while the model runs: the layer takes something of the words' length that is not known here.
    """
    names = list(inspect.signature(layer.forward).parameters)  # some decoders give their layers' inputs by place

    def hook(layer: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        named = dict(zip(names, arguments, strict=False)) | options
        states = named.pop(names[0])
        for name, value in named.items():
            if name not in _KNOWN and isinstance(value, Tensor):
                raise UserError(
                    f"a {type(layer).__name__} takes {name}, which cannot be given another length here; take a LLaMA,"
                    " OPT, GPT-2 or a like model"
                )
        states, named = enter(states, named)
        return (states,), named

    return layer.register_forward_pre_hook(hook, with_kwargs=True)


def on_leaving(layer: nn.Module, change: Callable[[Tensor], Tensor]) -> RemovableHandle:
    """After each call of `layer`, `change` says what its states are instead."""

    def hook(layer: nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    return layer.register_forward_hook(hook)
