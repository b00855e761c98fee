"""What every token reducer takes and gives: Y = W X, fewer tokens and the matrix that made them.

    reduction = create("column", tau=0.02)(x, 100, keys=keys, importance=importance, sizes=sizes)
    reduction.tokens, reduction.sizes            # [B, 100, C], [B, 100]
    reduction.matrix, reduction.membership       # W and P, [B, 100, N]
    reduction.expand(reduction.tokens)           # P^T Y, [B, N, C]

Pruning, merging, clustering, pooling and the many-to-many maps of Token Transforming (2506.05709) are all of this form.

Legend: B batch, N tokens in, M tokens out, C width, H heads, D width of a key, h x w grid.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tessera.errors import UserError
from tessera.reduce.maps import Map, full_precision


@dataclass(frozen=True)
class Seen:
    """What a reducer may look at.

    Attributes:
        keys: [B, N, D], by which tokens are compared.
        importance: [B, N], where it is known.
        sizes: float32 [B, N], how many of the first tokens each one stands for.
        grid: (h, w) with h * w = N, where the tokens still lie on one, row by row.
        kept: (h', w') with h' * w' = M, where the caller named the sides that are to be left.
    """

    keys: Tensor
    importance: Tensor | None
    sizes: Tensor
    grid: tuple[int, int] | None
    kept: tuple[int, int] | None = None

    def weighed(self, name: str) -> Tensor:
        """The importance.

        Raises:
            UserError: it was not given to a reducer called `name`, which needs it.
        """
        if self.importance is None:
            raise UserError(f"the reducer {name!r} chooses by importance; give importance=[B, N]")
        return self.importance


@dataclass(frozen=True)
class Plan:
    """How tokens are to be mapped: W, P where there is one, the token that each output stands at ([B, M], where it
    stands at one), and the grid of the outputs, where they lie on one."""

    map: Map
    spread: Map | None = None
    centres: Tensor | None = None
    grid: tuple[int, int] | None = None


@dataclass(frozen=True)
class Reduction:
    """Fewer tokens, and how they were made.

    Attributes:
        tokens: Y = W X, [B, M, C].
        sizes: float32 [B, M]: P m of the sizes m that came in, W m where there is no P.
        map: W, applied in the cheapest way.
        spread: P, likewise: how much of each token went into which output. Its columns sum to 1 but for dropped tokens.
        centres: int64 [B, M], the token that each output stands at, where it stands at one.
        grid: (h', w') with h' * w' = M, where the outputs lie on a grid.
    """

    tokens: Tensor
    sizes: Tensor
    map: Map
    spread: Map | None
    centres: Tensor | None
    grid: tuple[int, int] | None

    @property
    def matrix(self) -> Tensor:
        """W, float32 [B, M, N]; made when it is asked for."""
        return self.map.matrix()

    @property
    def membership(self) -> Tensor:
        """P, float32 [B, M, N]. Raises UserError where there is none."""
        return self._spread().matrix()

    def expand(self, y: Tensor) -> Tensor:
        """P^T Y: back to N places [B, N, C], of which each reads the outputs that it went into; a dropped one reads
        zeros.

        Raises:
            UserError: the reducer has no P.
        """
        return self._spread().back(y)

    def _spread(self) -> Map:
        if self.spread is None:
            raise UserError(
                "these tokens cannot be put back in their places: outputs that all read from all tokens say of none"
                " where it went; take the reducer 'column'"
            )
        return self.spread


class Reducer(ABC):
    """Tokens to fewer tokens by a linear map. A subclass is a frozen dataclass of its options and gives `plan`.

    Attributes:
        name: in the registry.
        expands: whether there is a P, so that outputs can be put back in the places of the tokens.
        drops: whether tokens are lost, of which no output tells; those kept stand at their centres.
        needs_grid: whether the tokens must lie on a grid.
    """

    name: ClassVar[str]
    expands: ClassVar[bool] = True
    drops: ClassVar[bool] = False
    needs_grid: ClassVar[bool] = False

    @property
    def reads(self) -> frozenset[str]:
        """What a caller should find out for it, of "keys" and "importance"."""
        return frozenset()

    @abstractmethod
    def plan(self, seen: Seen, number: int) -> Plan:
        """How `number` tokens, or as many of them as a grid has room for, are made."""

    def __call__(
        self,
        x: Tensor,
        number: int | tuple[int, int],
        *,
        keys: Tensor | None = None,
        importance: Tensor | None = None,
        sizes: Tensor | None = None,
        grid: tuple[int, int] | None = None,
    ) -> Reduction:
        """Tokens x [B, N, C] to `number` of them.

        Args:
            number: M, from 1 to N. Reducers on the grid give the largest grid of its proportions with at most M places;
                they give the very one that is named where this is (h', w').
            keys: [B, N, D]; the tokens themselves by default.
            importance: [B, N], as `class_importance` finds it.
            sizes: [B, N], carried from earlier steps; ones by default.
            grid: (h, w), where the tokens lie on one.

        Raises:
            UserError: more tokens are asked for than there are, or none; or the reducer needs what was not given.
        """
        tokens, kept = x.shape[1], None
        if isinstance(number, tuple):
            kept, number = number, number[0] * number[1]
        if not 1 <= number <= tokens:
            raise UserError(f"{number} tokens cannot be made of {tokens}; ask for 1 to {tokens}")
        if grid is not None and grid[0] * grid[1] != tokens:
            raise UserError(f"a grid of {grid[0]} x {grid[1]} does not hold {tokens} tokens")
        if self.needs_grid and grid is None:
            raise UserError(f"the reducer {self.name!r} works on a grid, which these {tokens} tokens are not on")
        if kept is not None and (min(kept) < 1 or (grid is not None and (kept[0] > grid[0] or kept[1] > grid[1]))):
            sides = "" if grid is None else f" of {grid[0]} x {grid[1]}"
            raise UserError(f"{kept[0]} x {kept[1]} tokens cannot be left of a grid{sides}; no side grows, none is 0")
        held = torch.ones(x.shape[:2], device=x.device) if sizes is None else sizes.float()
        with full_precision(x.device):
            plan = self.plan(Seen(x if keys is None else keys, importance, held, grid, kept), number)
            carried = (plan.spread or plan.map)(held[..., None])[..., 0]
        return Reduction(plan.map(x), carried, plan.map, plan.spread, plan.centres, plan.grid)


def class_importance(q: Tensor, k: Tensor, bias: Tensor | None = None, scale: float | None = None) -> Tensor:
    """How much the class token attends to each other token, mean over heads: its row of the map alone is computed.

    Args:
        q: [B, H, D], queries of the class token.
        k: [B, H, 1 + N, D], keys, the class token's own first.
        bias: [B, 1 + N], added to the scores, such as logarithms of sizes.
        scale: factor on the scores; D ** -0.5 by default.

    Returns:
        float32 [B, N].
    """
    scores = torch.matmul(k, q[..., None])[..., 0].float() * (q.shape[-1] ** -0.5 if scale is None else scale)
    if bias is not None:
        scores = scores + bias[:, None]
    return scores.softmax(-1).mean(1)[:, 1:]


def mean_importance(q: Tensor, k: Tensor) -> Tensor:
    """How much all tokens attend to each one, mean over heads: for models without class token. It takes the whole map,
    head by head, as one head's stays in the processor's cache and is two to three times as fast.

    Args:
        q, k: [B, H, N, D].

    Returns:
        float32 [B, N].
    """
    scaled = (q * q.shape[-1] ** -0.5).unbind(1)
    heads = [
        torch.matmul(one, other.transpose(-1, -2)).float().softmax(-1).mean(1)
        for one, other in zip(scaled, k.unbind(1), strict=True)
    ]
    return torch.stack(heads).mean(0)
