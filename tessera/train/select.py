"""Which parameters a stage trains, on what device, in what precision and mode."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from tessera.errors import UserError, nearest


def matches(pattern: str, names: Iterable[str]) -> set[str]:
    """Names that fit `pattern`: a glob over the whole name (`*` crosses dots), or "re:" and a regular
    expression that is searched for."""
    if pattern.startswith("re:"):
        try:
            expression = re.compile(pattern[3:])
        except re.error as error:
            raise UserError(f"the trainable pattern {pattern!r} is no regular expression: {error}") from error
        return {name for name in names if expression.search(name)}
    return {name for name in names if fnmatchcase(name, pattern)}


def set_trainable(model: nn.Module, patterns: Sequence[str]) -> tuple[int, int]:
    """Let the parameters that fit `patterns` learn and freeze all others.

    Patterns are taken in order; one that starts with "!" takes its matches out again. Modules whose
    parameters are all frozen go to evaluation mode (no dropout, fixed batch statistics), all others to
    training mode.

    Returns: number of trainable and of frozen values.

    Raises:
        UserError: a pattern fits no parameter, or nothing is left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    chosen: set[str] = set()
    for pattern in patterns:
        found = matches(pattern.removeprefix("!"), names)
        if not found:
            stems = {".".join(name.split(".")[:2]) for name in names}
            raise UserError(f"the trainable pattern {pattern!r} fits no parameter{nearest(pattern, stems)}")
        chosen = chosen - found if pattern.startswith("!") else chosen | found
    if not chosen:
        raise UserError(f"the trainable patterns {list(patterns)} leave nothing to train")
    counts = [0, 0]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
        counts[name not in chosen] += parameter.numel()
    set_modes(model)
    return counts[0], counts[1]


def set_modes(model: nn.Module) -> None:
    """Training mode, except where every parameter below a module is frozen."""
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


def has_fast_bf16(device: torch.device) -> bool:
    """Whether `device` multiplies bfloat16 faster than float32: AMX or AVX512-BF16, or CUDA capability
    8.0."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    found = torch.cpu.get_capabilities()
    return device.type == "cpu" and bool(found.get("amx_bf16") or found.get("avx512_bf16"))


def choose_precision(asked: str, device: torch.device) -> str:
    """ "bf16" or "fp32" for "auto", "bf16" or "fp32".

    Raises:
        UserError: another name.
    """
    if asked == "auto":
        return "bf16" if has_fast_bf16(device) else "fp32"
    if asked not in ("bf16", "fp32"):
        raise UserError(f"unknown precision {asked!r}; known are 'auto', 'bf16' and 'fp32'")
    return asked


def to_device(batch: Any, device: torch.device) -> Any:
    """A batch on `device`: by its own `.to`, or the tensors of a mapping."""
    if hasattr(batch, "to"):
        return batch.to(device)
    return {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}


_SWITCHES = {
    True: (
        "activation_checkpointing_enable",
        "gradient_checkpointing_enable",
        "enable_gradient_checkpointing",
    ),
    False: (
        "activation_checkpointing_disable",
        "gradient_checkpointing_disable",
        "disable_gradient_checkpointing",
    ),
}  # transformers from 5, transformers before, diffusers


def _switch_checkpointing(module: nn.Module, on: bool) -> bool:
    able = getattr(
        module, "supports_gradient_checkpointing", getattr(module, "_supports_gradient_checkpointing", False)
    )
    method = next((getattr(module, name) for name in _SWITCHES[on] if able and hasattr(module, name)), None)
    if method is not None:
        method()
        return True
    switched = [_switch_checkpointing(child, on) for child in module.children()]
    return any(switched)


def checkpoint_activations(model: nn.Module, on: bool) -> None:
    """Recompute activations in the backward pass instead of keeping them (less memory, about a third more
    time).

    Raises:
        UserError: asked for where no part of `model` can.
    """
    if not _switch_checkpointing(model, on) and on:
        name = type(model).__name__
        raise UserError(f"{name} has no part that can recompute activations; leave activation_checkpointing off")
