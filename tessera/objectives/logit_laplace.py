"""The likelihood of pixels between two walls: a Laplace distribution of their logits (Ramesh et al. 2021, arXiv
2102.12092, appendix A.3).

Legend: any shape; pixels lie in [0, 1].
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tessera.objectives.tally import Tally

MARGIN = 0.1  # epsilon: pixels are brought to [0.1, 0.9], where logits are finite


def squeeze(pixels: Tensor) -> Tensor:
    """[0, 1] -> [MARGIN, 1 - MARGIN]."""
    return (1 - 2 * MARGIN) * pixels + MARGIN


def expected(mean: Tensor) -> Tensor:
    """The pixels that logits `mean` stand for: `squeeze` undone, which may lie a little beyond [0, 1]."""
    return (mean.sigmoid() - MARGIN) / (1 - 2 * MARGIN)


def logit_laplace(mean: Tensor, log_scale: Tensor, pixels: Tensor) -> Tally:
    """Sum of ln(2 b x (1 - x)) + |logit(x) - mean| / b over all values x = squeeze(pixels), in nats and in fp32.

    Args:
        mean, log_scale: of the logits, and ln b; in the shape of the pixels.

    Raises:
        ValueError: the shapes differ. They are never broadcast.
    """
    if not mean.shape == log_scale.shape == pixels.shape:
        shapes = ", ".join(str(tuple(one.shape)) for one in (mean, log_scale, pixels))
        raise ValueError(f"mean, scale and pixels are of the shapes {shapes}")
    logits = torch.logit(squeeze(pixels.detach().float()))
    log_scale = log_scale.float()
    # ln(x (1 - x)) from the logit: exact where x is close to a wall
    width = F.logsigmoid(logits) + F.logsigmoid(-logits)
    loss = math.log(2) + log_scale + width + (logits - mean.float()).abs() * (-log_scale).exp()
    return Tally(loss.sum(), loss.numel())
