"""How far a restored picture is from the clean one where it was hidden.

Legend: B pictures of C channels and H x W pixels.
"""

from __future__ import annotations

from torch import Tensor

from tessera.objectives.tally import Tally


def masked_l1(restored: Tensor, clean: Tensor, mask: Tensor | None = None) -> Tally:
    """Sum of absolute differences over hidden values, in fp32, and how many values those are.

    Args:
        restored, clean: [B, C, H, W]; the clean ones get no gradient.
        mask: bool [B, 1, H, W], what was hidden; None for all.

    Raises:
        ValueError: the pictures are of different shapes. They are never broadcast.
    """
    if restored.shape != clean.shape:
        raise ValueError(f"a picture of {tuple(restored.shape)} for one of {tuple(clean.shape)}")
    error = (restored.float() - clean.detach().float()).abs()
    if mask is None:
        return Tally(error.sum(), error.numel())
    return Tally((error * mask).sum(), int(mask.sum()) * clean.shape[1])
