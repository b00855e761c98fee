"""A token reducer and how many tokens it leaves of a picture's grid: between encoder and connector, or where it is put.

Legend: M pictures, h x w grid in, h' x w' grid out, K tokens left, C width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tessera.connect.connectors import Grid
from tessera.errors import UserError
from tessera.reduce.base import Reducer, Reduction
from tessera.reduce.grids import scaled_grid, smaller_grid


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A reducer with exactly one of `side`, `ratio` and `tokens`, which say how much it leaves.

    Args:
        side: h' = w', where the grid is at least as large each way; a smaller one passes as it is.
        ratio: of each side, rounded down and at least 1.
        tokens: K; reducers on the grid leave the largest grid of its proportions that has no more.

    Raises:
        UserError: none of them is given, or more than one, or a value out of range.
    """

    reducer: Reducer
    side: int | None = None
    ratio: float | None = None
    tokens: int | None = None

    def __post_init__(self) -> None:
        given = {name: value for name in ("side", "ratio", "tokens") if (value := getattr(self, name)) is not None}
        if len(given) != 1:
            said = " and ".join(f"keep_{name}" for name in given) + " say" if given else "nothing says"
            raise UserError(
                f"{said} how many tokens the reducer {self.reducer.name!r} leaves; give one of keep_side, keep_ratio"
                " and keep_tokens"
            )
        ((name, value),) = given.items()
        if value <= 0 or (name == "ratio" and value > 1):
            raise UserError(f"keep_{name} is {value}; it is above 0{' and at most 1' if name == 'ratio' else ''}")

    def left(self, grid: Grid) -> Grid:
        """What is left of a grid; (1, K) where outputs lie on none."""
        asked = self._asked(grid)
        if asked is None:
            return grid
        if self.reducer.needs_grid:
            return asked if isinstance(asked, tuple) else smaller_grid(grid, asked)
        return 1, asked if isinstance(asked, int) else asked[0] * asked[1]

    def __call__(self, x: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        """Tokens x [M, h * w, C] to [M, K, C], and what they lie on.

        Raises:
            UserError: as `reduce`.
        """
        found = self.reduce(x, grid)
        return (x, grid) if found is None else (found.tokens, self.left(grid))

    def reduce(self, x: Tensor, grid: Grid, importance: Tensor | None = None) -> Reduction | None:
        """The same with the map that made them, and with an importance [M, h * w] where there is one; None where the
        grid passes as it is.

        Raises:
            UserError: more tokens are asked for than there are, or the reducer cannot leave so many.
        """
        asked = self._asked(grid)
        return None if asked is None else self.reducer(x, asked, grid=grid, importance=importance)

    def check(self, grid: Grid) -> None:
        """Try it on nothing.

        Raises:
            UserError: the reducer cannot do this here.
        """
        try:
            self(torch.zeros(1, grid[0] * grid[1], 1, device="cpu"), grid)
        except UserError as error:
            raise UserError(
                f"{self.reducer.name!r} cannot stand between an encoder with a grid of {grid[0]} x {grid[1]} and the"
                f" connector: {error}"
            ) from error

    def _asked(self, grid: Grid) -> Grid | int | None:
        """What the reducer is asked for; None where it is not asked."""
        if self.tokens is not None:
            return self.tokens
        if self.ratio is not None:
            return scaled_grid(grid, self.ratio)
        assert self.side is not None
        return None if self.side > min(grid) else (self.side, self.side)
