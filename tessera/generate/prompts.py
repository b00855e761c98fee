"""Prompts with pictures, answered together by a language model with eyes.

Legend: B prompts, L positions of the longest, M pictures (their tiles, where they are tiled), S pixels a side.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessorList, PreTrainedTokenizerFast, TextStreamer

from tessera.data.images import Pixels
from tessera.data.sequence import Sequence
from tessera.errors import UserError
from tessera.generate.debias import Debiasing
from tessera.models.lvlm import LVLMForConditionalGeneration

TOGETHER = 64  # prompts that are continued at once


def collate(prompts: Seq[Sequence], pixels: Pixels, *, pad_id: int) -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask` int64 [B, L], padded on the left, where answers begin side by side, and
    `pixel_values` float32 [M, 3, S, S] where there are pictures.

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
    return inputs | ({"pixel_values": torch.from_numpy(np.stack(shown))} if shown else {})


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
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    options = {"do_sample": False, "eos_token_id": sorted(stops), "pad_token_id": pad, **options}
    if said is not None:
        options["streamer"] = Heard(tokenizer, said)
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    found = [""] * len(prompts)
    model.eval()
    for start in range(0, len(order), TOGETHER):
        part = order[start : start + TOGETHER]
        given = collate([prompts[place] for place in part], pixels, pad_id=int(pad))
        inputs: dict[str, Any] = {name: value.to(model.device) for name, value in given.items()}
        if debias is not None:
            contrast = debias.over(model, inputs, tokenizer.unk_token_id)
            options["logits_processor"] = LogitsProcessorList([contrast])
        ids = model.generate(**inputs, max_new_tokens=max_new_tokens, **options)
        texts = tokenizer.batch_decode(ids[:, given["input_ids"].shape[1] :], skip_special_tokens=True)
        for place, text in zip(part, texts, strict=True):
            found[place] = text.strip()
    return found


class Heard(TextStreamer):
    """Hands words on as they are said, each once it is whole."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, said: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._said = said

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self._said(text)
