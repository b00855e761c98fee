"""Pictures of any shape as LLaVA-NeXT reads them: small and whole, then large on a sheet of tiles, row by row of
patches, with what pads the sheet left out and a mark after each row. Choice of the sheet and cut are transformers' own.

Legend: M pictures, T tiles of all of them (each picture's whole first), h x w grid of a tile, N = h * w, d width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

from tessera.errors import DataError, UserError

Grid = tuple[int, int]


class Sheets(nn.Module):
    """The mark, and how tokens of tiles become tokens of pictures.

    Args:
        pinpoints: height and width in pixels of each sheet.
        side: pixels of a tile.

    Raises:
        UserError: a sheet is not made of whole tiles.
    """

    def __init__(self, pinpoints: Sequence[Sequence[int]], side: int, width: int) -> None:
        super().__init__()
        for one in pinpoints:
            if len(one) != 2 or min(one) < side or any(length % side for length in one):
                raise UserError(f"a sheet of {list(one)} pixels is not made of whole tiles of {side}; change the sheet")
        self.pinpoints, self.side = [list(one) for one in pinpoints], side
        self.newline = nn.Parameter(torch.randn(width) * width**-0.5)

    def tiles(self, height: int, width: int) -> Grid:
        """Rows and columns of the sheet for a picture of height x width pixels."""
        rows, columns = get_anyres_image_grid_shape((height, width), self.pinpoints, self.side)
        return int(rows), int(columns)

    def count(self, height: int, width: int, grid: Grid) -> int:
        """Tokens of such a picture."""
        rows, columns = self.tiles(height, width)
        sheet = torch.empty(1, rows * grid[0], columns * grid[1], device="meta")
        _, high, wide = unpad_image(sheet, (height, width)).shape
        return grid[0] * grid[1] + high * (wide + 1)

    def forward(self, tokens: Tensor, sizes: Tensor, grid: Grid) -> Tensor:
        """Tokens [T, N, d] of tiles to tokens [S, d] of pictures of sizes int64 [M, 2], height and width in pixels.

        Raises:
            DataError: T is not the number of tiles of such pictures.
        """
        shapes = [(height, width) for height, width in sizes.tolist()]
        counts = [1 + rows * columns for rows, columns in (self.tiles(*shape) for shape in shapes)]
        if sum(counts) != len(tokens):
            raise DataError(f"{len(tokens)} tiles were given for pictures that have {sum(counts)}")
        parts = zip(tokens.split(counts), shapes, strict=True)
        return torch.cat([one for some, shape in parts for one in (some[0], self._sheet(some[1:], shape, grid))])

    def _sheet(self, tiles: Tensor, shape: Grid, grid: Grid) -> Tensor:
        rows, columns = self.tiles(*shape)
        high = tiles.view(rows, columns, *grid, -1).permute(4, 0, 2, 1, 3).flatten(3, 4).flatten(1, 2)  # [d, H, W]
        kept = unpad_image(high, shape)
        mark = self.newline.to(kept)[:, None, None].expand(*kept.shape[:-1], 1)
        return torch.cat([kept, mark], dim=-1).flatten(1).T
