"""Tensors as autocast would have them, for code that must know the type before it computes."""

from __future__ import annotations

import torch
from torch import Tensor


def as_autocast(*tensors: Tensor) -> list[Tensor]:
    """All in the type of autocast where it is on for their device, else as they are."""
    kind = tensors[0].device.type
    if not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
        return list(tensors)
    return [x.to(torch.get_autocast_dtype(kind)) for x in tensors]
