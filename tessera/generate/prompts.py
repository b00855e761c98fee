"""Prompts with pictures, answered together by a language model with eyes.

Legend: B prompts, L positions of the longest, M pictures (their tiles, where they are tiled), S pixels a side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessorList, PreTrainedTokenizerFast, TextStreamer

from tessera.data.images import Pixels
from tessera.data.sequence import Sequence
from tessera.data.tiling import SheetPixels
from tessera.errors import UserError
from tessera.generate.debias import Debiasing
from tessera.generate.meaningless import CALIBRATION_STEP, Inputs, meaningless
from tessera.models.lvlm import LVLMForConditionalGeneration

TOGETHER = 64  # prompts that are continued at once


def collate(prompts: Seq[Sequence], pixels: Pixels, *, pad_id: int) -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask` int64 [B, L], padded on the left, where answers begin side by side, and
    `pixel_values` float32 [M, 3, S, S] where there are pictures; and `image_sizes` int64, height and width of each
    picture, where they are shown on sheets.

    Raises:
        BadSample: a picture cannot be read.
    """
    length = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), length), pad_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt) :] = torch.from_numpy(prompt.input_ids)
        mask[row, length - len(prompt) :] = 1
    shown = [tile for prompt in prompts for image in prompt.images for tile in pixels.several(image.pil())]
    inputs = {"input_ids": ids, "attention_mask": mask}
    if shown:
        inputs["pixel_values"] = torch.from_numpy(np.stack(shown))
    if shown and isinstance(pixels, SheetPixels):
        sizes = [image.pil().size[::-1] for prompt in prompts for image in prompt.images]
        inputs["image_sizes"] = torch.tensor(sizes)
    return inputs


@torch.no_grad()
def replies(
    model: LVLMForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Seq[Sequence],
    pixels: Pixels,
    *,
    max_new_tokens: int,
    said: Callable[[str], None] | None = None,
    debias: Debiasing | None = None,
    **options: Any,
) -> list[str]:
    """What the model says after each prompt, without outer spaces.

    Args:
        debias: takes off what is said without a meaningful picture; every prompt has one.
        said: is handed the words of the one prompt as they are said.
        options: further ones of `generate`; without them the best word is taken each time.

    Raises:
        UserError: a prompt leaves the language model no position to answer in, or has no picture to debias by.
        BadSample: a picture cannot be read.
    """
    if debias is not None and not all(prompt.images for prompt in prompts):
        raise UserError("an answer to words alone cannot be debiased; show a picture first, or leave out the debiasing")
    ends = model.generation_config.eos_token_id if model.generation_config is not None else None
    stops = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
    pad = _padding(tokenizer)
    options = {"do_sample": False, "eos_token_id": sorted(stops), "pad_token_id": pad, **options}
    if said is not None:
        options["streamer"] = Heard(tokenizer, said)
    found = [""] * len(prompts)
    model.eval()
    for part, inputs in _together(model, prompts, pixels, int(pad)):
        if debias is not None:
            contrast = debias.over(model, inputs, tokenizer.unk_token_id)
            options["logits_processor"] = LogitsProcessorList([contrast])
        ids = model.generate(**inputs, max_new_tokens=max_new_tokens, **options)
        texts = tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for place, text in zip(part, texts, strict=True):
            found[place] = text.strip()
    return found


@torch.no_grad()
def first_scores(
    model: LVLMForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Seq[Sequence],
    pixels: Pixels,
    blind: str | None = None,
) -> torch.Tensor:
    """The raw scores float32 [n, V] of the word after each of n prompts, on the CPU.

    Args:
        blind: read the prompts with this meaningless picture, as of `meaningless`, whose noise is here that of
            calibration; "both" is none.

    Raises:
        UserError: as `meaningless`.
        BadSample: a picture cannot be read.
    """
    pad = _padding(tokenizer)
    found = torch.zeros(len(prompts), 0)
    model.eval()
    for part, given in _together(model, prompts, pixels, int(pad)):
        inputs: Inputs = given
        if blind is not None:
            (inputs,) = meaningless(
                given, blind, image_token_id=model.config.image_token_id, unk_token_id=tokenizer.unk_token_id,
                noise_step=CALIBRATION_STEP,
            )  # fmt: skip
        said: Any = model.generate(
            **inputs, do_sample=False, max_new_tokens=1, pad_token_id=pad, return_dict_in_generate=True,
            output_logits=True,
        )  # fmt: skip
        scores = said.logits[0].float().cpu()
        found = found.new_zeros(len(prompts), scores.shape[1]) if not found.shape[1] else found
        found[part] = scores
    return found


def _padding(tokenizer: PreTrainedTokenizerFast) -> Any:
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def _together(
    model: LVLMForConditionalGeneration, prompts: Seq[Sequence], pixels: Pixels, pad: int
) -> Iterator[tuple[list[int], dict[str, Any]]]:
    """Places of prompts of about one length, and what `generate` is given of them."""
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    for start in range(0, len(order), TOGETHER):
        part = order[start : start + TOGETHER]
        given = collate([prompts[place] for place in part], pixels, pad_id=pad)
        yield part, {name: value.to(model.device) for name, value in given.items()}


class Heard(TextStreamer):
    """Hands words on as they are said, each once it is whole."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, said: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._said = said

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self._said(text)
