"""In which blocks of an encoder tokens are reduced, and to how many.

Schedule(keep=0.65).counts(196, depth=12)          # {3: 128, 6: 84, 9: 55}
Schedule(blocks=range(12), remove=12)              # as ToMe does with r = 12
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from tessera.errors import UserError

KEEP = 0.65
N = TypeVar("N", int, float)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Exactly one of `keep`, `number` and `remove` says how many tokens are left; without any, `keep` is 0.65. A list
    has one entry for each block.

    Args:
        blocks: counted from 0; by default those after a quarter, half and three quarters of the depth: 3, 6, 9 of 12.
        keep: share of the tokens that come in, above 0 and at most 1, rounded up.
        number: of tokens left.
        remove: of tokens taken away.

    Raises:
        UserError: blocks that are named twice or not in order, lists of another length, or values out of range.
    """

    blocks: Sequence[int] = ()
    keep: float | Sequence[float] | None = None
    number: int | Sequence[int] | None = None
    remove: int | Sequence[int] | None = None

    def __post_init__(self) -> None:
        if any(late <= early for early, late in zip(self.blocks, self.blocks[1:], strict=False)):
            raise UserError(f"the blocks to reduce in are {list(self.blocks)}; name each once, in order")
        given = [name for name in ("keep", "number", "remove") if getattr(self, name) is not None]
        if len(given) > 1:
            raise UserError(f"{' and '.join(given)} both say how many tokens are left; give one of them")
        for name, value in (("keep", self.keep), ("number", self.number), ("remove", self.remove)):
            for one in [] if value is None else value if isinstance(value, Sequence) else [value]:
                if one <= 0 or (name == "keep" and one > 1):
                    raise UserError(f"{name} is {one}; it is above 0{' and at most 1' if name == 'keep' else ''}")

    def places(self, depth: int) -> tuple[int, ...]:
        """The blocks of an encoder of `depth`.

        Raises:
            UserError: there is no such block, or lists have another length.
        """
        blocks = tuple(self.blocks) or tuple(dict.fromkeys(max(1, depth * part // 4) for part in (1, 2, 3)))
        for block in blocks:
            if not 0 <= block < depth:
                raise UserError(f"tokens cannot be reduced in block {block}; this encoder has blocks 0 to {depth - 1}")
        for name, value in (("keep", self.keep), ("number", self.number), ("remove", self.remove)):
            if isinstance(value, Sequence) and len(value) != len(blocks):
                raise UserError(
                    f"{name} has {len(value)} entries for {len(blocks)} blocks; give one each, or one for all"
                )
        return blocks

    def counts(self, tokens: int, depth: int) -> dict[int, int]:
        """Block -> tokens left after its attention, of `tokens` on a picture (without class token).

        Raises:
            UserError: as `places`; or more tokens are to be left, or taken away, than there are.
        """
        blocks, left = self.places(depth), {}
        for turn, block in enumerate(blocks):
            if self.number is not None:
                after = _one(self.number, turn)
            elif self.remove is not None:
                after = tokens - _one(self.remove, turn)
            else:
                after = math.ceil(_one(KEEP if self.keep is None else self.keep, turn) * tokens - 1e-9)
            if not 1 <= after <= tokens:
                raise UserError(f"block {block} has {tokens} tokens and cannot leave {after}; leave 1 to {tokens}")
            left[block] = tokens = after
        return left


def _one(value: N | Sequence[N], turn: int) -> N:
    return value[turn] if isinstance(value, Sequence) else value
