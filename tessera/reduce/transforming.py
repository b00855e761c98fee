"""Dense maps made from the tokens, many to many: the two forms of Token Transforming (2506.05709), and random rows.

The paper gives the frame, W of non-negative rows that sum to 1; no code of it was published, and how W is made here is
this library's choice: cosine between the keys of centres and of all tokens, divided by a temperature, through a softmax
over the tokens ("row") or over the centres ("column").

Legend: B batch, N tokens in, M tokens out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tessera.errors import UserError
from tessera.reduce.base import Plan, Reducer, Seen
from tessera.reduce.centres import Centres, centres_of, check_kind
from tessera.reduce.maps import Dense

TAU = 0.02


@dataclass(frozen=True, kw_only=True)
class _Transform(Reducer):
    """A softmax of similarities with centres.

    Args:
        tau: temperature on cosines; 0.02 to 0.05 is the useful range.
        centres: see `centres_of`.
        by_importance: multiply what an output reads of a token by the token's importance.
    """

    tau: float = TAU
    centres: Centres = "farthest"
    by_importance: bool = False

    def __post_init__(self) -> None:
        check_kind(self.centres)
        if not self.tau > 0:
            raise UserError(f"tau is {self.tau}; it is a number above 0")

    @property
    def reads(self) -> frozenset[str]:
        """Keys, and the importance where it is looked at."""
        blind = self.centres == "strided" and not self.by_importance
        return frozenset({"keys"} if blind else {"keys", "importance"})

    def _weighed(self, shares: Tensor, seen: Seen) -> Tensor:
        """Shares [B, M, N], times the importance where asked, each row brought to the sum 1."""
        if self.by_importance:
            shares = shares * seen.weighed(self.name)[:, None]
        return shares / shares.sum(-1, keepdim=True)


@dataclass(frozen=True, kw_only=True)
class Row(_Transform):
    """W = softmax over tokens of s / tau: every output reads from all tokens. With tau to 0 this is pruning."""

    name = "row"
    expands = False

    def plan(self, seen: Seen, number: int) -> Plan:
        """Dense rows."""
        centres, similarity = centres_of(self.centres, seen, number, self.name)
        weights = (similarity / self.tau).softmax(-1)
        return Plan(Dense(self._weighed(weights, seen) if self.by_importance else weights), None, centres)


@dataclass(frozen=True, kw_only=True)
class Column(_Transform):
    """P = softmax over outputs of s / tau: every token spreads unit mass over the outputs, so that none is lost; W is P
    times the sizes, each row brought to the sum 1. With tau to 0 this is merging into the nearest centre."""

    name = "column"

    def plan(self, seen: Seen, number: int) -> Plan:
        """Dense rows, and the P that they came from."""
        centres, similarity = centres_of(self.centres, seen, number, self.name)
        spread = (similarity / self.tau).softmax(1)
        return Plan(Dense(self._weighed(spread * seen.sizes[:, None], seen)), Dense(spread), centres)


@dataclass(frozen=True, kw_only=True)
class Projection(Reducer):
    """Random dense rows, drawn with a seed and alike for all examples: a control for the dense maps."""

    name = "projection"
    expands = False
    seed: int = 0

    def plan(self, seen: Seen, number: int) -> Plan:
        """Rows that are uniform on the simplex."""
        batch, sources = seen.sizes.shape
        generator = torch.Generator("cpu").manual_seed(self.seed)
        drawn = torch.empty(number, sources, device="cpu").exponential_(generator=generator)
        weights = (drawn / drawn.sum(1, keepdim=True)).to(seen.sizes.device)
        return Plan(Dense(weights.expand(batch, -1, -1)))
