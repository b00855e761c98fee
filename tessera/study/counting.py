"""What a model weighs and costs, counted on the meta device: no weights, no memory, no time.

with torch.device("meta"):
    model = create("vit-b16")
count(model, {"pixel_values": torch.empty(1, 3, 224, 224, device="meta")})
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, PreTrainedConfig


def count(model: nn.Module, inputs: Mapping[str, Any] | None = None) -> dict[str, int | float]:
    """Parameters of `model`, and what one forward pass in evaluation mode costs.

    Args:
        inputs: arguments of the forward pass by name, on the model's device; for one example, as published figures are.

    Returns:
        `parameters`, all of them, each once; `trainable`, those that take a gradient; and where inputs are given
        `gmacs`, 10^9 multiply-additions in matrix products, convolutions and attention, as PyTorch's counter finds
        them (half its FLOPs). Elementwise work, norms and softmax are not in it.
    """
    parameters = list(model.parameters())
    counted: dict[str, int | float] = {
        "parameters": sum(one.numel() for one in parameters),
        "trainable": sum(one.numel() for one in parameters if one.requires_grad),
    }
    if inputs is not None:
        counted["gmacs"] = macs(model, inputs) / 1e9
    return counted


def macs(model: nn.Module, inputs: Mapping[str, Any]) -> int:
    """Multiply-additions of one forward pass in evaluation mode; see `count`."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(**inputs)
    finally:
        for module, training in modes.items():
            module.training = training
    return counter.get_total_flops() // 2


def prefill(config: PreTrainedConfig, positions: int, *, left: int | None = None, after: int = 0) -> int:
    """FLOPs of a causal language model of transformers over so many positions, its head at each of them, two for a
    multiply-add: one layer is counted and taken as often as there are, since they are alike.

    Attention is counted whole, not by half as its mask would allow.

    Args:
        left: positions that are left behind the first `after` layers, for the others and the head; what leaves them is
            not counted.
    """

    def of(layers: int, length: int) -> int:
        shallow = type(config).from_dict({**config.to_dict(), "num_hidden_layers": layers})
        given = {
            "inputs_embeds": torch.empty(1, length, shallow.hidden_size),
            "attention_mask": torch.empty(1, 1, length, length, dtype=torch.bool),
            "use_cache": False,
        }
        return macs(AutoModelForCausalLM.from_config(shallow), given)

    left = positions if left is None else left
    with torch.device("meta"):
        one = {length: of(1, length) for length in {positions, left}}
        layer = {length: of(2, length) - found for length, found in one.items()}
    rest = one[left] + (config.num_hidden_layers - after - 1) * layer[left]
    return 2 * (after * layer[positions] + rest)
