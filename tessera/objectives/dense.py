"""Losses of dense prediction: a class for every pixel, the thing that a phrase names, depth.

Shape legend: B pictures of H x W pixels; K classes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tessera.data.dense import IGNORED
from tessera.objectives.tally import Tally

THING = (0.9, 1.1)  # weights of the rest and of the thing that a phrase names (LAVT)


def pixel_cross_entropy(logits: Tensor, labels: Tensor, weights: tuple[float, ...] = ()) -> Tally:
    """Cross-entropy of logits [B, K, H, W] for labels int [B, H, W], summed over the pixels that are not IGNORED.

    Args:
        weights: of the classes; then the number is that of the weighed pixels, rounded, as PyTorch divides.
    """
    weigh = torch.tensor(weights, device=logits.device) if weights else None
    total = F.cross_entropy(logits.float(), labels, weight=weigh, ignore_index=IGNORED, reduction="sum")
    told = labels[labels != IGNORED]
    return Tally(total, told.numel() if weigh is None else round(float(weigh[told].sum())))


def scale_invariant_log(depth: Tensor, labels: Tensor, share: float = 0.5, least: float = 1e-6) -> Tally:
    """sqrt(mean d^2 - share (mean d)^2), d = log label - log depth over the pixels whose depth is known (above 0),
    of all pictures together (Eigen et al. 2014); counted once a picture.

    Both are [B, H, W].
    """
    known = labels > 0
    if not known.any():
        return Tally(depth.sum() * 0.0, 0)
    error = labels[known].float().log() - depth[known].float().clamp(min=least).log()
    return Tally((error.square().mean() - share * error.mean() ** 2).clamp(min=1e-12).sqrt() * len(depth), len(depth))


def dense_loss(task: str, found: Any, labels: Tensor) -> Tally:
    """The loss of a task.

    Args:
        found: something with `logits` or, for "depth", `depth`.
        labels: int [B, H, W] of classes, or of 1 for the thing and 0 for the rest; float [B, H, W] of depth, 0 where
            it is not known.
    """
    if task == "depth":
        return scale_invariant_log(found.depth, labels)
    return pixel_cross_entropy(found.logits, labels, THING if task == "referring" else ())
