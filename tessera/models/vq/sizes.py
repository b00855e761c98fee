"""Named sizes of tokenizers with a codebook."""

from __future__ import annotations

from typing import Any

from tessera.models.vq.configuration import VQConfig

_SIDES = {"s": (512, 8, 8), "b": (768, 12, 12), "l": (1280, 32, 16)}  # width, blocks, heads
REBUILT: dict[str, Any] = {  # what thuanz123/enhancing-transformers does otherwise than the text
    "activation": "tanh", "qkv_bias": False, "tanh_head": False, "positions": "sine2d", "logit_laplace": False,
    "head_width": 64, "code_init": "uniform",
}  # fmt: skip


def _sides(encoder: str, decoder: str, **more: Any) -> dict[str, Any]:
    names = ("width", "depth", "heads")
    sides = zip(("encoder", "decoder"), (encoder, decoder), strict=True)
    found = {f"{side}_{name}": value for side, size in sides for name, value in zip(names, _SIDES[size], strict=True)}
    return {**found, "head_width": 64, **more}


SIZES: dict[str, dict[str, Any]] = {
    "vit-vqgan-ss": _sides("s", "s"),
    "vit-vqgan-bb": _sides("b", "b"),
    "vit-vqgan-sl": _sides("s", "l"),
    "vit-vqgan-ll": _sides("l", "l"),
    "vit-vqgan-ss-rebuilt": _sides("s", "s", **REBUILT),
    "vit-vqgan-bb-rebuilt": _sides("b", "b", **REBUILT),
    "vit-vqgan-sl-rebuilt": _sides("s", "l", **REBUILT),
    "vit-vqgan-ll-rebuilt": _sides("l", "l", **REBUILT),
}


def named(name: str, **changes: Any) -> VQConfig:
    """The configuration of a named size with some of its fields changed. Raises KeyError for an unknown name."""
    return VQConfig(**{**SIZES[name], **changes})
