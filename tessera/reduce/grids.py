"""Reducers that look at places alone: average pooling, and the DCT low-pass of Fourier-VLM.

Legend: B batch, h x w grid in, h' x w' grid out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tessera.reduce.base import Plan, Reducer, Seen
from tessera.reduce.maps import Separable


def smaller_grid(grid: tuple[int, int], number: int) -> tuple[int, int]:
    """The largest grid of the same proportions, each side rounded down, that has at most `number` places; at least one
    row and one column."""
    share = math.sqrt(number / (grid[0] * grid[1]))
    rows, columns = (max(1, int(side * share + 1e-9)) for side in grid)
    return min(rows, number), min(columns, number)


def averages(kept: int, side: int) -> Tensor:
    """[kept, side]: means over the windows of adaptive average pooling, which overlap where sides do not divide."""
    places = torch.arange(side, device="cpu")
    step = torch.arange(kept, device="cpu")[:, None]
    inside = (places >= step * side // kept) & (places < -(-(step + 1) * side // kept))
    return inside / inside.sum(1, keepdim=True)


def cosines(side: int) -> Tensor:
    """The orthonormal DCT-II matrix [side, side], frequencies by places."""
    frequency, place = torch.arange(side, device="cpu")[:, None], torch.arange(side, device="cpu")[None]
    table = torch.cos(math.pi * frequency * (2 * place + 1) / (2 * side)).double() * math.sqrt(2 / side)
    table[0] = math.sqrt(1 / side)
    return table


def low_pass(kept: int, side: int) -> Tensor:
    """[kept, side], with orthonormal rows: the lowest `kept` of `side` cosines, read as a signal of `kept` places."""
    return (cosines(kept).T @ cosines(side)[:kept]).float()


@dataclass(frozen=True, kw_only=True)
class Pool(Reducer):
    """Adaptive average pooling on the grid."""

    name = "pool"
    needs_grid = True

    def plan(self, seen: Seen, number: int) -> Plan:
        """Means over windows; a token in several of them goes to each in equal parts."""
        assert seen.grid is not None
        kept = smaller_grid(seen.grid, number)
        sides = [averages(*pair).to(seen.sizes.device) for pair in zip(kept, seen.grid, strict=True)]
        shares = [(side > 0).float() / (side > 0).sum(0) for side in sides]
        batch = seen.sizes.shape[0]
        return Plan(Separable(sides[0], sides[1], batch), Separable(shares[0], shares[1], batch), grid=kept)


@dataclass(frozen=True, kw_only=True)
class DCT(Reducer):
    """The low-frequency block of the grid's two-dimensional DCT, transformed back at its own size (Fourier-VLM,
    2508.06038): W = A_h x A_w with orthonormal rows. Rows have negative lobes.

    Args:
        orthonormal: as published, where rows sum to (h w / (h' w')) ** 0.5; else they are scaled to sum to 1, so that a
            constant stays what it is, as it must inside an encoder.
    """

    name = "dct"
    needs_grid = True
    orthonormal: bool = True

    def plan(self, seen: Seen, number: int) -> Plan:
        """W, and as P what undoes it on the low frequencies."""
        assert seen.grid is not None
        kept = smaller_grid(seen.grid, number)
        sides = [low_pass(*pair).to(seen.sizes.device) for pair in zip(kept, seen.grid, strict=True)]
        factors = [1.0 if self.orthonormal else math.sqrt(side.shape[0] / side.shape[1]) for side in sides]
        batch = seen.sizes.shape[0]
        rows = [side * factor for side, factor in zip(sides, factors, strict=True)]
        undo = [side / factor for side, factor in zip(sides, factors, strict=True)]
        return Plan(Separable(rows[0], rows[1], batch), Separable(undo[0], undo[1], batch), grid=kept)
