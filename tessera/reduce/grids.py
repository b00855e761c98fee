"""Reducers that look at places alone: average pooling, and the DCT low-pass of Fourier-VLM.

Legend: B batch, h x w grid in, h' x w' grid out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tessera.errors import UserError, nearest
from tessera.reduce.base import Plan, Reducer, Seen
from tessera.reduce.maps import Separable

Norm = Literal["orthonormal", "none", "mean"]
NORMS: tuple[Norm, ...] = ("orthonormal", "none", "mean")


def smaller_grid(grid: tuple[int, int], number: int) -> tuple[int, int]:
    """The largest grid of the same proportions, each side rounded down, that has at most `number` places; at least one
    row and one column."""
    share = math.sqrt(number / (grid[0] * grid[1]))
    rows, columns = (max(1, int(side * share + 1e-9)) for side in grid)
    return min(rows, number), min(columns, number)


def scaled_grid(grid: tuple[int, int], ratio: float) -> tuple[int, int]:
    """Each side times `ratio`, rounded down, and at least 1."""
    return max(int(grid[0] * ratio), 1), max(int(grid[1] * ratio), 1)


def nearest_places(places: Tensor, grid: tuple[int, int]) -> Tensor:
    """For every place of a grid (h, w) the nearest of some places int64 [B, M], as their numbers 0 to M - 1, int64
    [B, h * w]; of those equally near the first. So a map is filled up whose other places were lost."""
    rows, columns = (
        torch.arange(grid[0] * grid[1], device=places.device).div(grid[1], rounding_mode="floor"),
        torch.arange(grid[0] * grid[1], device=places.device) % grid[1],
    )
    apart = (rows[:, None] - rows).square() + (columns[:, None] - columns).square()
    return apart[places].argmin(1)


def averages(kept: int, side: int) -> Tensor:
    """[kept, side]: means over the windows of adaptive average pooling, which overlap where sides do not divide."""
    places = torch.arange(side, device="cpu")
    step = torch.arange(kept, device="cpu")[:, None]
    inside = (places >= step * side // kept) & (places < -(-(step + 1) * side // kept))
    return inside / inside.sum(1, keepdim=True)


def cosines(side: int) -> Tensor:
    """The orthonormal DCT-II matrix [side, side], frequencies by places."""
    count = torch.arange(side, dtype=torch.float64, device="cpu")
    table = torch.cos(math.pi * count[:, None] * (2 * count + 1) / (2 * side)) * math.sqrt(2 / side)
    table[0] = math.sqrt(1 / side)
    return table


def scales(side: int) -> Tensor:
    """[side]: what the orthonormal coefficients are multiplied by to be those of the DCT-II without a norm, as SciPy
    has it by default."""
    factors = torch.full((side,), math.sqrt(2 * side), dtype=torch.float64, device="cpu")
    factors[0] = math.sqrt(4 * side)
    return factors


def low_pass(kept: int, side: int) -> Tensor:
    """[kept, side], with orthonormal rows: the lowest `kept` of `side` cosines, read as a signal of `kept` places."""
    return cosines(kept).T @ cosines(side)[:kept]


@dataclass(frozen=True, kw_only=True)
class Pool(Reducer):
    """Adaptive average pooling on the grid."""

    name = "pool"
    needs_grid = True

    def plan(self, seen: Seen, number: int) -> Plan:
        """Means over windows; a token in several of them goes to each in equal parts."""
        assert seen.grid is not None
        kept = seen.kept or smaller_grid(seen.grid, number)
        sides = [averages(*pair).to(seen.sizes.device) for pair in zip(kept, seen.grid, strict=True)]
        shares = [(side > 0).float() / (side > 0).sum(0) for side in sides]
        batch = seen.sizes.shape[0]
        return Plan(Separable(sides[0], sides[1], batch), Separable(shares[0], shares[1], batch), grid=kept)


@dataclass(frozen=True, kw_only=True)
class DCT(Reducer):
    """The low-frequency block of the grid's two-dimensional DCT, transformed back at its own size (Fourier-VLM,
    2508.06038): W = A_h x A_w. Rows have negative lobes. With all frequencies kept nothing changes.

    Args:
        norm: "orthonormal", as published: W has orthonormal rows, which sum to (h w / (h' w')) ** 0.5. "none": both
            transforms without a norm, the other form of the official code, which makes tokens so many times larger
            again. "mean": scaled to sum to 1, so that a constant stays what it is, as it must where nothing is trained.
        coefficients: the kept coefficients themselves are the tokens, lowest first, without the way back.
    """

    name = "dct"
    needs_grid = True
    norm: Norm = "orthonormal"
    coefficients: bool = False

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise UserError(f"norm cannot be {self.norm!r}{nearest(self.norm, NORMS)}")

    def plan(self, seen: Seen, number: int) -> Plan:
        """W, and as P what undoes it on the low frequencies."""
        assert seen.grid is not None
        kept = seen.kept or smaller_grid(seen.grid, number)
        pairs = [self._axis(*pair) for pair in zip(kept, seen.grid, strict=True)]
        (down, up), (across, out) = [[one.float().to(seen.sizes.device) for one in pair] for pair in pairs]
        batch = seen.sizes.shape[0]
        return Plan(Separable(down, across, batch), Separable(up, out, batch), grid=kept)

    def _axis(self, kept: int, side: int) -> tuple[Tensor, Tensor]:
        """The matrix of one axis, and the transpose of what undoes it, each [kept, side]."""
        rows = cosines(side)[:kept] if self.coefficients else low_pass(kept, side)
        factor: Tensor | float = 1.0
        if self.norm == "mean":
            factor = math.sqrt(kept / side)
        elif self.norm == "none":
            factor = scales(side)[:kept, None] if self.coefficients else math.sqrt(side / kept)
        return rows * factor, rows / factor
