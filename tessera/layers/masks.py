"""Attention masks of packed rows."""

from __future__ import annotations

import torch
from torch import Tensor


def block_causal(segment_ids: Tensor) -> Tensor:
    """Which position may read which, in rows that hold several sequences.

    Args:
        segment_ids: [B, L]; positions of one sequence share a number. Padding (0) is a sequence of its own,
            so that no row of the mask is empty.

    Returns:
        bool [B, 1, L, L]: position i reads j where j <= i and both belong to one sequence.
    """
    length = segment_ids.shape[1]
    earlier = torch.ones(length, length, dtype=torch.bool, device=segment_ids.device).tril()
    return ((segment_ids[:, :, None] == segment_ids[:, None, :]) & earlier)[:, None]


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A bool mask, True where it may be read, as a float that is added to the scores: 0, or the lowest finite number,
    so that a row that may read nothing gives an average and not NaN."""
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)


def positions_within(segment_ids: Tensor) -> Tensor:
    """int64 [B, L]: the place of each position in its own sequence, counted from 0.

    The positions of one sequence stand side by side in `segment_ids` [B, L].
    """
    index = torch.arange(segment_ids.shape[1], device=segment_ids.device).expand(segment_ids.shape)
    starts = torch.ones_like(segment_ids, dtype=torch.bool)
    starts[:, 1:] = segment_ids[:, 1:] != segment_ids[:, :-1]
    return index - torch.where(starts, index, 0).cummax(dim=1).values
