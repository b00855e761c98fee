"""Tables that tell tokens of a grid where they stand.

Legend: B pictures, E extra tokens before the grid (a class token), h x w grid, W width.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def sine_table(positions: int, width: int) -> Tensor:
    """Sines and cosines float32 [positions, W] in turn along the width (Vaswani et al. 2017): column j of row p is
    the sine (even j) or cosine (odd j) of p / 10000 ** (2 * (j // 2) / W)."""
    rates = 10000.0 ** (-2 * (torch.arange(width, dtype=torch.float64) // 2) / width)
    angles = torch.arange(positions, dtype=torch.float64)[:, None] * rates
    return torch.where(torch.arange(width) % 2 == 0, angles.sin(), angles.cos()).float()


def sine_table_2d(grid: tuple[int, int], width: int) -> Tensor:
    """Sines and cosines float32 [h * w, W] of a grid, row by row: the first half of the width tells the column, the
    second the row, each as W / 4 sines and then as many cosines of p / 10000 ** (4 j / W) (as masked autoencoders have
    it; He et al. 2022). W is a multiple of 4."""
    rates = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    rows, columns = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in grid), indexing="ij")
    angles = [place.flatten()[:, None] * rates for place in (columns, rows)]
    return torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1).float()


def resize_table(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """A table [E + h * w, W] for grid `old` as [E + h' * w', W] for grid `new`: bicubic in float32, edges not aligned,
    as published vision transformers move to another resolution. The E rows before the grid stay as they are."""
    if old == new:
        return table
    extra = table.shape[0] - old[0] * old[1]
    grid = table[extra:].float().T.reshape(1, -1, *old)
    resized = F.interpolate(grid, size=new, mode="bicubic", align_corners=False)
    return torch.cat([table[:extra], resized[0].flatten(1).T.to(table.dtype)])


class PositionTable(nn.Module):
    """Adds a row of a table to each token; for another grid than its own the table is interpolated.

    Args:
        grid: (h, w) that the table is made for.
        extra: E, tokens before the grid that have rows of their own.
        kind: "learned" is a parameter, which the model initialises; "sine" a fixed buffer, see `sine_table`; "sine2d"
            another, see `sine_table_2d`, for which `extra` is 0.
    """

    table: Tensor
    no_muon = True  # no hidden matrix: see tessera.train.optim

    def __init__(
        self, grid: tuple[int, int], width: int, *, extra: int, kind: Literal["learned", "sine", "sine2d"]
    ) -> None:
        super().__init__()
        self.grid = grid
        rows = extra + grid[0] * grid[1]
        if kind == "learned":
            self.table = nn.Parameter(torch.zeros(rows, width))
        else:
            table = sine_table(rows, width) if kind == "sine" else sine_table_2d(grid, width)
            self.register_buffer("table", table)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """[B, E + h * w, W] of any grid -> the same with positions."""
        return tokens + resize_table(self.table, self.grid, grid)
