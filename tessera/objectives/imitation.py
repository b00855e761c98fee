"""What a policy that also foresees pictures is trained by (GR-1, Wu et al. 2023, arXiv 2312.13139): the expert's
actions, and patches of the pictures some steps ahead.

Every mean is over valid steps: where a window is padded there is neither an action nor a picture to learn.

Legend: B windows of T steps, P pixels a side of a patch, N = h * w patches of a picture, D = P * P * channels.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from tessera.objectives.tally import Tally


def patchify(pictures: Tensor, side: int) -> Tensor:
    """[..., channels, h * P, w * P] -> [..., N, D]: patches row by row; within one, pixels row by row, the channels of
    a pixel side by side (as masked autoencoders have it; He et al. 2022)."""
    tiles = pictures.unflatten(-1, (-1, side)).unflatten(-3, (-1, side))  # [..., c, h, P, w, P]
    return tiles.movedim(-5, -1).transpose(-4, -3).flatten(-3).flatten(-3, -2)


def unpatchify(patches: Tensor, grid: tuple[int, int], side: int) -> Tensor:
    """The inverse of `patchify`: [..., N, D] of a grid (h, w) -> [..., channels, h * P, w * P]."""
    tiles = patches.unflatten(-1, (side, side, -1)).unflatten(-4, grid)  # [..., h, w, P, P, c]
    return tiles.transpose(-4, -3).movedim(-1, -5).flatten(-2).flatten(-3, -2)


def standardised(patches: Tensor) -> Tensor:
    """[..., D], each patch with mean 0 and standard deviation 1, counted over D - 1."""
    centred = patches - patches.mean(-1, keepdim=True)
    return centred / (patches.var(-1, keepdim=True).sqrt() + 1e-6)


def foresight(predicted: Tensor, patches: Tensor, steps: Tensor, ahead: int) -> Tally:
    """Squared error of what each step foresees `ahead` steps later, over the steps that have such a later one.

    Args:
        predicted, patches: [B, T, N, D]; `patches` are those of the step itself, which are shifted here. Left where
            they stand they would teach the model to copy its input.
        steps: bool [B, T], True where a window is no padding.
    """
    valid = steps[:, ahead:]
    error = (predicted[:, : steps.shape[1] - ahead].float() - patches[:, ahead:].detach().float()).square()
    return _over(error.flatten(2).mean(-1), valid)


def arm_error(predicted: Tensor, actions: Tensor, steps: Tensor) -> Tally:
    """Smooth L1 of continuous actions [B, T, A] over valid steps, bool [B, T]."""
    return _over(F.smooth_l1_loss(predicted.float(), actions.float(), reduction="none").mean(-1), steps)


def gripper_error(logits: Tensor, opened: Tensor, steps: Tensor) -> Tally:
    """Cross-entropy of the logits [B, T] of `opened`, bool [B, T], over valid steps, bool [B, T]."""
    return _over(F.binary_cross_entropy_with_logits(logits.float(), opened.float(), reduction="none"), steps)


def _over(errors: Tensor, valid: Tensor) -> Tally:
    return Tally((errors * valid).sum(), int(valid.sum()))
