"""Prompts that ask the same without a meaningful picture: what a model then says is its language prior.

Follows Debiasing Large Visual Language Models (2403.05262) and its code.

Legend: B rows, L positions of the prompt, M pictures, N placeholders of one picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from tessera.errors import UserError, nearest

Inputs = Mapping[str, Any]  # what `generate` of a language model with eyes is given, by name
KINDS = ("none", "unk", "noise", "zeros", "ones", "both")
STEPS = 1000
DECODING_STEP, CALIBRATION_STEP = 500, 999  # how noisy the picture is: of visual contrastive decoding, of calibration
_PICTURES = ("pixel_values", "image_embeds")


def meaningless(
    inputs: Inputs,
    kind: str,
    *,
    image_token_id: int,
    unk_token_id: int | None = None,
    noise_step: int = DECODING_STEP,
    seed: int = 0,
) -> list[Inputs]:
    """The inputs of `generate` with their pictures taken away or emptied; two of them for "both", else one.

    Args:
        inputs: `input_ids` [B, L], `attention_mask` [B, L] where rows are padded on the left, and `pixel_values`, or
            `image_embeds` [M, N, d] where the pictures are to go away. They are not changed.
        kind: "none" leaves the pictures out; "unk" puts one unknown word in the place of each; "noise" draws diffusion
            noise over the pixels; "zeros" and "ones" make every pixel that number; "both" is "none" and "unk".
        image_token_id: as in the model's configuration.
        unk_token_id: as the tokenizer has it; for "unk" and "both".
        noise_step: of STEPS; for "noise".
        seed: of the noise.

    Raises:
        UserError: there is no such kind, no unknown word, no pixels, or a prompt of pictures alone.
    """
    check_kind(kind)
    if kind in ("none", "unk", "both"):
        words = [None, unk_token_id] if kind == "both" else [unk_token_id if kind == "unk" else None]
        if kind != "none" and unk_token_id is None:
            raise UserError(f"{kind!r} needs the tokenizer's unknown word; give unk_token_id, or take 'none'")
        return [_without_pictures(inputs, image_token_id, word) for word in words]
    pixels = inputs.get("pixel_values")
    if pixels is None:
        raise UserError(f"{kind!r} changes pixels and none were given; give pixel_values, or take 'none'")
    if kind == "noise":
        return [{**inputs, "pixel_values": diffuse(pixels, noise_step, seed)}]
    return [{**inputs, "pixel_values": torch.full_like(pixels, float(kind == "ones"))}]


def check_kind(kind: str) -> None:
    """Raise UserError where `kind` is none of KINDS."""
    if kind not in KINDS:
        raise UserError(f"there is no meaningless picture {kind!r}{nearest(kind, KINDS)}; known are {', '.join(KINDS)}")


def diffuse(pixels: Tensor, step: int, seed: int = 0) -> Tensor:
    """sqrt(a) pixels + sqrt(1 - a) noise, of any shape, where a is the product of 1 - beta up to and with `step`.

    beta = sigmoid(-6 ... 6) (0.005 - 0.00001) + 0.00001 over STEPS steps. The noise depends on seed and shape alone.

    Raises:
        UserError: `step` is not one of 0 to STEPS - 1.
    """
    if not 0 <= step < STEPS:
        raise UserError(f"noise_step is {step}; it is one of 0 to {STEPS - 1}")
    betas = torch.linspace(-6, 6, STEPS).sigmoid() * (0.5e-2 - 1e-5) + 1e-5
    kept = (1 - betas).cumprod(0)[step]
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(seed)).to(pixels)
    return kept.sqrt().item() * pixels + (1 - kept).sqrt().item() * noise


def _without_pictures(inputs: Inputs, image_token_id: int, word: int | None) -> Inputs:
    """Ids and mask, padded on the left, with every picture gone or become one `word`."""
    ids: Tensor = inputs["input_ids"]
    mask = inputs.get("attention_mask")
    read = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    slots = (ids == image_token_id) & read
    kept = read & ~slots
    if word is not None:
        kept |= _first_of_each(slots, _pictures(inputs))
        ids = ids.masked_fill(slots, word)
    lengths = kept.sum(1)
    if not lengths.all():
        raise UserError(f"row {int(lengths.argmin())} of the prompts is pictures alone; without them nothing is asked")
    # A stable sort brings what is dropped to the left and leaves the order of the rest.
    order = kept.int().argsort(dim=1, stable=True)[:, -int(lengths.max()) :]
    padded = ~kept.gather(1, order)
    # Padding is any word but a picture: a prompt's last one is at hand and is in every vocabulary.
    left = ids.gather(1, order)
    return {"input_ids": torch.where(padded, left[:, -1:], left), "attention_mask": (~padded).long()}


def _pictures(inputs: Inputs) -> int | None:
    given = [inputs[name] for name in _PICTURES if inputs.get(name) is not None]
    return len(given[0]) if given and given[0].ndim > 2 else None  # else rows are patches or tokens


def _first_of_each(slots: Tensor, pictures: int | None) -> Tensor:
    """Bool [B, L], the first placeholder of each picture: all have equally many, or else each run of them is one."""
    starts = slots & ~pad(slots, (1, 0))[:, :-1]
    if not pictures or int(slots.sum()) % pictures:
        return starts
    each = int(slots.sum()) // pictures
    before = slots.cumsum(1) - 1
    into = before - before.masked_fill(~starts, 0).cummax(dim=1).values  # how far a placeholder is into its run
    ends = slots & ~pad(slots, (0, 1))[:, 1:]
    whole = not ((into[ends] + 1) % each).any()
    return slots & (into % each == 0) if whole else starts
