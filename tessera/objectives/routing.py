"""Which head answers at which position: decided by what comes next, not by what stands there.

Legend: B rows, L positions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tessera.data.sequence import IGNORED


class Routes(NamedTuple):
    """Two disjoint bool masks [B, L - 1]. Entry [b, i] speaks of the step from position i to its target i +
    1."""

    text: Tensor
    visual: Tensor


def route(labels: Tensor, visual_target: Tensor | None, segment_ids: Tensor | None) -> Routes:
    """Send every step to the language head (its target is a word) or to the regression head (a visual
    embedding).

    So the step from [IMG] goes to the regression head, and the step from the last embedding to the language
    head. Steps from one sequence into the next, and into padding, have no target. (VL-GPT, multimodal sequence.)

    Args:
        labels: integer [B, L], unshifted; -100 where the position is no learned word.
        visual_target: bool [B, L], True where the position is a learned visual embedding.
        segment_ids: [B, L], 0 for padding; None where each row is one sequence.
    """
    text = labels[:, 1:] != IGNORED
    visual = torch.zeros_like(text) if visual_target is None else visual_target[:, 1:].bool()
    if segment_ids is not None:
        within = (segment_ids[:, 1:] == segment_ids[:, :-1]) & (segment_ids[:, 1:] > 0)
        text, visual = text & within, visual & within
    return Routes(text & ~visual, visual)
