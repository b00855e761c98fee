"""Who reads whom in a policy whose queries nobody sees.

Legend: B windows, T steps, I input tokens and Q query tokens a step, L = T * (I + Q).
"""

from __future__ import annotations

import torch
from torch import Tensor


def query_mask(steps: Tensor, inputs: int, queries: int) -> Tensor:
    """bool [B, 1, L, L], True where a position may be read: inputs of valid steps, by themselves and by what follows
    them. A query is read by nobody, itself included, so that leaving queries out changes nothing else.

    Args:
        steps: bool [B, T], True where a step is no padding. Padding is on the right: the first step is valid, and so
            every position has something to read.
    """
    is_input = torch.arange(inputs + queries, device=steps.device) < inputs
    readable = (steps.bool()[:, :, None] & is_input).flatten(1)
    earlier = torch.ones(readable.shape[1], readable.shape[1], dtype=torch.bool, device=steps.device).tril()
    return earlier & readable[:, None, None]
