"""What `generate` of transformers needs to know of prompts with pictures.

Legend: B rows, L positions of the prompt, d width of the language model.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteria, StoppingCriteriaList, SuppressTokensLogitsProcessor

from tessera.errors import UserError
from tessera.models.lvlm.configuration import LVLMConfig


class Reader(Protocol):
    """A configuration that says how many positions are read; None sets no limit."""

    @property
    def context(self) -> int | None: ...


class ContextEnd(StoppingCriteria):
    """Stops a row where the language model has no position left.

    Args:
        context: positions that it reads.
        padding: int64 [B], how many of a row's positions are none.
    """

    def __init__(self, context: int, padding: Tensor) -> None:
        self.context, self.padding = context, padding

    def __call__(self, input_ids: Tensor, scores: Any, **options: Any) -> Tensor:
        """bool [B * beams]: the rows of `input_ids` that are full."""
        padding = self.padding.repeat_interleave(len(input_ids) // len(self.padding))
        return input_ids.shape[1] - padding >= self.context


def never_a_picture(config: LVLMConfig, processors: LogitsProcessorList | None, device: Any) -> LogitsProcessorList:
    """`processors` and, after them, one that keeps the placeholder of a picture from being said."""
    if config.image_token_id >= config.text_config.vocab_size:
        return LogitsProcessorList(processors or [])
    last = SuppressTokensLogitsProcessor([config.image_token_id], device=device)
    return LogitsProcessorList([*(processors or []), last])


def within_context(
    config: Reader, criteria: StoppingCriteriaList | None, ids: Tensor, attention_mask: Tensor | None
) -> StoppingCriteriaList:
    """`criteria` and one that ends a row with the language model's positions, for prompts `ids` [B, L].

    Raises:
        UserError: a prompt leaves none for an answer.
    """
    if config.context is None:
        return StoppingCriteriaList(criteria or [])
    mask = torch.ones_like(ids) if attention_mask is None else attention_mask
    lengths = mask.sum(-1)
    if (longest := int(lengths.max())) >= config.context:
        raise UserError(
            f"the prompt has {longest} tokens and the language model reads {config.context}, its answer included:"
            f" {longest - config.context + 1} too many; shorten the text or give fewer pictures"
        )
    return StoppingCriteriaList([*(criteria or []), ContextEnd(config.context, ids.shape[1] - lengths)])


def repeat_pictures(embeds: Tensor, slots: Tensor, times: int) -> Tensor:
    """Each row's tokens [n, d] of `embeds` `times` over, as `slots` bool [B, L] shares them out among the rows."""
    counts = slots.sum(1).tolist()
    flat = embeds.flatten(0, -2)
    if sum(counts) != len(flat):  # the first step says what does not match
        return flat
    return torch.cat([row.repeat(times, 1) for row in flat.split(counts)])
