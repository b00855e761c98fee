"""State dicts as the official T2T-ViT code lays them out: names and shapes written down from it, values from a formula.

The code itself is not here. `t2t_golden.json` holds what it answers (commit 0f63dc9558) for these values.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch

CLASSES = 10
SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 3.0, "image_size": 64}
FLAVOURS = {  # fields of T2TViTConfig
    "performer": SMALL,
    "transformer": {**SMALL, "token_layer": "transformer"},
    "se": {**SMALL, "block": "se"},
    "ghost": {**SMALL, "block": "ghost"},
    "dense": {**SMALL, "block": "dense", "dense_stages": (1, 2), "num_hidden_layers": 3, "dense_growth": 64},
}

Shapes = dict[str, tuple[int, ...]]


def _linear(name: str, into: int, out: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (out, into)} | ({f"{name}.bias": (out,)} if bias else {})


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _tokens(flavour: str, width: int, t: int = 64) -> Shapes:
    shapes = _linear("tokens_to_token.project", t * 9, width)
    for number, cut in ((1, 147), (2, t * 9)):
        name = f"tokens_to_token.attention{number}"
        shapes |= _norm(f"{name}.norm1", cut) | _norm(f"{name}.norm2", t)
        if flavour == "performer":
            shapes |= _linear(f"{name}.kqv", cut, 3 * t) | _linear(f"{name}.proj", t, t)
            shapes |= {f"{name}.w": (t // 2, t)} | _linear(f"{name}.mlp.0", t, t) | _linear(f"{name}.mlp.2", t, t)
        else:
            shapes |= _linear(f"{name}.attn.qkv", cut, 3 * t, bias=False) | _linear(f"{name}.attn.proj", t, t)
            shapes |= _linear(f"{name}.mlp.fc1", t, t) | _linear(f"{name}.mlp.fc2", t, t)
    return shapes


def _attention(name: str, width: int, block: str) -> Shapes:
    shapes = _linear(f"{name}.proj", width, width)
    if block == "ghost":
        for part in "qkv":
            shapes |= _linear(f"{name}.{part}", width, width // 2, bias=False)
            shapes |= {f"{name}.cheap_operation_{part}.weight": (width // 2, 1, 1)}
        return shapes
    shapes |= _linear(f"{name}.qkv", width, 3 * width, bias=False)
    if block == "se":
        shapes |= _linear(f"{name}.se_layer.fc.0", width, width // 16, bias=False)
        shapes |= _linear(f"{name}.se_layer.fc.2", width // 16, width, bias=False)
    return shapes


def _block(name: str, width: int, ratio: float, block: str, growth: int) -> Shapes:
    hidden = int(width * ratio)
    shapes = _norm(f"{name}.norm1", width) | _norm(f"{name}.norm2", width) | _attention(f"{name}.attn", width, block)
    shapes |= _linear(f"{name}.mlp.fc1", width, width if block == "ghost" else hidden)
    shapes |= _linear(f"{name}.mlp.fc2", hidden, width)
    if block == "ghost":
        shapes |= {f"{name}.mlp.cheap_operation{number}.weight": (width, 1, 1) for number in (2, 3)}
    return shapes | (_linear(f"{name}.dense_linear", width, growth) if block == "dense" else {})


def layout(config, classes: int = CLASSES) -> Shapes:
    """Names and shapes of the whole classifier that `config` (a T2TViTConfig) describes."""
    width, positions = config.hidden_size, (config.image_size // 16) ** 2 + 1
    shapes: Shapes = {"cls_token": (1, 1, width), "pos_embed": (1, positions, width)}
    shapes |= _tokens(config.token_layer, width)
    stages = config.dense_stages if config.block == "dense" else [config.num_hidden_layers]
    number = 0
    for stage, depth in enumerate(stages):
        for _ in range(depth):
            shapes |= _block(f"blocks.{number}", width, config.mlp_ratio, config.block, config.dense_growth)
            width += config.dense_growth if config.block == "dense" else 0
            number += 1
        if stage < len(stages) - 1:
            shapes |= _linear(f"blocks.{number}.linear", width, width // 2)
            width, number = width // 2, number + 1
    return shapes | _norm("norm", width) | _linear("head", width, classes)


def weights(shapes: Shapes) -> dict[str, torch.Tensor]:
    """Values for these names that any machine makes alike, around 1 for the weights of norms."""
    state = {}
    for name, shape in shapes.items():
        values = _values(zlib.crc32(name.encode()), torch.Size(shape).numel())
        if "norm" in name:
            values = 0.2 * values + name.endswith("weight")
        elif len(shape) == 2 and not name.endswith(".w"):
            values = values * 3 * shape[1] ** -0.5
        state[name] = values.reshape(shape)
    return state


def pictures(side: int = 64) -> torch.Tensor:
    """Two pictures [2, 3, side, side], made likewise."""
    return _values(1, 2 * 3 * side * side).view(2, 3, side, side) * 2


def _values(seed: int, number: int) -> torch.Tensor:
    """Uniform in (-1, 1); NumPy's generator gives the same everywhere."""
    return torch.from_numpy(np.random.default_rng(seed).random(number) * 2 - 1).float()
