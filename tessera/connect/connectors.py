"""Connectors: from what an image encoder saw to what a language model reads.

Each takes tokens [M, S, C] with their grid (h, w) and gives [M, N, d], and says how many tokens N that will be.
Legend: M pictures, h x w grid, E = 1 where a class token stands before it, else 0, S = E + h * w tokens of width C, N
tokens of width d for the language model.
"""

from __future__ import annotations

from torch import Tensor, nn

from tessera.errors import UserError
from tessera.layers.mlp import Mlp

Grid = tuple[int, int]


class Connector(nn.Module):
    """What all of them share. A subclass takes C and d first, then its options by keyword."""

    def left(self, grid: Grid) -> Grid:
        """What tokens on `grid` lie on behind it.

        Raises:
            UserError: the connector cannot take such a grid.
        """
        return grid

    def count(self, grid: Grid, extra: int = 0) -> int:
        """N of a picture whose tokens lie on `grid`, with `extra` = E tokens before them.

        Raises:
            UserError: the connector cannot take them.
        """
        rows, columns = self.left(grid)
        return extra + rows * columns

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        """[M, S, C] on (h, w) -> [M, N, d]. Raises UserError as `count`."""
        raise NotImplementedError


class Linear(Connector):
    """One linear layer for each token (LLaVA 1.0, eP-ALM): [M, S, C] -> [M, S, d]."""

    def __init__(self, vision_width: int, width: int, *, bias: bool = True) -> None:
        super().__init__()
        self.project = nn.Linear(vision_width, width, bias)

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        return self.project(tokens)


class TwoLayers(Connector):
    """Linear, activation, Linear for each token, d wide between the two (LLaVA 1.5): [M, S, C] -> [M, S, d].

    Args:
        activation: a name in transformers' table; gelu is the exact one.
    """

    def __init__(self, vision_width: int, width: int, *, bias: bool = True, activation: str = "gelu") -> None:
        super().__init__()
        self.mlp = Mlp(vision_width, width, activation, out=width, bias=bias)

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        return self.mlp(tokens)


class Pooled(Connector):
    """The mean of all tokens through one linear layer, one token a picture: [M, S, C] -> [M, 1, d].

    Where the model reads the class token alone, that token is what is projected (PromptFuse).
    """

    def __init__(self, vision_width: int, width: int, *, bias: bool = True) -> None:
        super().__init__()
        self.project = nn.Linear(vision_width, width, bias)

    def left(self, grid: Grid) -> Grid:
        """1 x 1."""
        return 1, 1

    def count(self, grid: Grid, extra: int = 0) -> int:
        """1."""
        return 1

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        return self.project(tokens.mean(dim=1, keepdim=True))


class Squares(Connector):
    """What connectors share that put squares of `factor` x `factor` neighbours side by side as one token:
    [M, h * w, C] -> [M, h * w / factor ** 2, d]. Row by row within a square."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        if factor < 1:
            raise UserError(f"factor is {factor}; it is at least 1")
        self.factor = factor

    def left(self, grid: Grid) -> Grid:
        """(h / factor, w / factor). Raises UserError where the grid does not divide."""
        if grid[0] % self.factor or grid[1] % self.factor:
            raise UserError(
                f"a grid of {grid[0]} x {grid[1]} tokens does not divide into squares of {self.factor} x"
                f" {self.factor}; take another factor or another picture size"
            )
        return grid[0] // self.factor, grid[1] // self.factor

    def count(self, grid: Grid, extra: int = 0) -> int:
        """h * w / factor ** 2. Raises UserError as `left`, or where the grid has a class token before it."""
        if extra:
            raise UserError("pixel-shuffle takes a grid alone; leave the class token out of what the connector reads")
        return super().count(grid)

    def squares(self, tokens: Tensor, grid: Grid) -> Tensor:
        """[M, h * w, C] -> [M, h * w / factor ** 2, factor ** 2 * C]. Raises UserError as `count`."""
        self.count(grid, tokens.shape[1] - grid[0] * grid[1])
        r = self.factor
        squares = tokens.unflatten(1, (grid[0] // r, r, grid[1] // r, r)).transpose(2, 3)  # [M, h / r, w / r, r, r, C]
        return squares.flatten(3).flatten(1, 2)


class PixelShuffle(Squares):
    """Squares of neighbours through one linear layer (Idefics3, SmolVLM)."""

    def __init__(self, vision_width: int, width: int, *, factor: int = 2, bias: bool = False) -> None:
        super().__init__(factor)
        self.project = nn.Linear(vision_width * factor**2, width, bias)

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        return self.project(self.squares(tokens, grid))


class PixelShuffleMlp(Squares):
    """Squares of neighbours through LayerNorm, Linear, activation, Linear, d wide between the two (InternVL 1.5).

    Args:
        activation: a name in transformers' table.
    """

    def __init__(self, vision_width: int, width: int, *, factor: int = 2, activation: str = "gelu") -> None:
        super().__init__(factor)
        self.norm = nn.LayerNorm(vision_width * factor**2)
        self.mlp = Mlp(vision_width * factor**2, width, activation, out=width)

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        return self.mlp(self.norm(self.squares(tokens, grid)))
