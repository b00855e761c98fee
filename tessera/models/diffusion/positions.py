"""Sine codes of places in a picture."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sine_code(places: Tensor, channels: int) -> Tensor:
    """Codes [..., channels] of places [..., 2] = (y, x) in [0, 1]: sine and cosine of k pi y and k pi x, k = 1, 2, ...

    The product of two codes falls with the distance of their places. `channels` is a multiple of 4.
    """
    rates = torch.pi * torch.arange(1, channels // 4 + 1)
    angles = places[..., None] * rates  # [..., 2, k]
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)


def cell_centres(height: int, width: int) -> Tensor:
    """Middles (y, x) in [0, 1] of the cells of a grid, row by row, [height * width, 2]."""
    rows, columns = (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width
    return torch.cartesian_prod(rows, columns)


def sine_grid(channels: int, height: int, width: int) -> Tensor:
    """`sine_code` of every cell of a grid as channels, [channels, height, width]."""
    return sine_code(cell_centres(height, width), channels).T.reshape(channels, height, width)


def patch_code(states: int, width: int, channels: int = 16, strength: float = 4.0) -> Tensor:
    """Sine codes for patch states, class token first, [states, width]: zero but in the first `channels` channels."""
    side = math.isqrt(states - 1)
    code = torch.zeros(states, width)
    code[1:, :channels] = strength * sine_code(cell_centres(side, side), channels)
    return code
