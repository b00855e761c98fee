"""Reducers in which every token goes to exactly one output: ToMe's bipartite matching, and nearest centres.

Legend: B batch, N tokens in, M tokens out, D width of a key.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from tessera.errors import UserError
from tessera.reduce.base import Plan, Reducer, Seen
from tessera.reduce.centres import Centres, centres_of, check_kind
from tessera.reduce.maps import Groups, positions


@dataclass(frozen=True, kw_only=True)
class ToMe(Reducer):
    """Tokens at odd places each look for the one at an even place that is most like them; the N - M most alike pairs
    are merged (Bolya et al. 2023, 2210.09461).

    Places and order of the outputs (those left of the odd ones, then the even ones) are as in the official code behind
    a class token, so that several steps agree with it too.
    """

    name = "tome"

    @property
    def reads(self) -> frozenset[str]:
        """The keys."""
        return frozenset({"keys"})

    def plan(self, seen: Seen, number: int) -> Plan:
        """Means by size over each token at an even place and what was merged into it.

        Raises:
            UserError: fewer than half of the tokens are to be left.
        """
        sources = seen.sizes.shape[1]
        odd, even, gone = sources // 2, sources - sources // 2, sources - number
        if gone > odd:
            raise UserError(
                f"tome merges at most half of the tokens in one step, and of {sources} only {number} are to be left;"
                f" ask for {even} or more, and split the step in two"
            )
        keys = F.normalize(seen.keys.float(), dim=-1)
        alike, to = torch.bmm(keys[:, 1::2], keys[:, ::2].transpose(1, 2)).max(-1)
        left = alike.argsort(1, descending=True)[:, gone:].sort(1).values  # of the odd ones
        places = positions(seen.sizes)
        index = places.clone()
        index[:, ::2] = places[:, :even] + odd - gone
        index[:, 1::2] = (to + odd - gone).scatter(1, left, places[:, : odd - gone])
        centres = torch.cat([2 * left + 1, 2 * places[:, :even]], 1)
        return Plan(Groups.means(index, seen.sizes, number), Groups.sums(index, number), centres)


@dataclass(frozen=True, kw_only=True)
class Nearest(Reducer):
    """Every token goes to the centre that its key is most like; outputs are means by size.

    Args:
        centres: see `centres_of`.
        iterations: of k-means on the keys, each of which moves the centres to the means of their tokens.
    """

    name = "nearest"
    centres: Centres = "farthest"
    iterations: int = 0

    def __post_init__(self) -> None:
        check_kind(self.centres)
        if self.iterations < 0:
            raise UserError(f"iterations is {self.iterations}; it is at least 0")

    @property
    def reads(self) -> frozenset[str]:
        """Keys, and the importance where centres are chosen by it."""
        return frozenset({"keys"} if self.centres == "strided" else {"keys", "importance"})

    def plan(self, seen: Seen, number: int) -> Plan:
        """One non-zero a column."""
        centres, similarity = centres_of(self.centres, seen, number, self.name)
        index = similarity.argmax(1)
        # A centre stays with itself, even beside another with the same key, so that no output is empty.
        index = index.scatter(1, centres, positions(centres))
        keys = F.normalize(seen.keys.float(), dim=-1)
        for _ in range(self.iterations):
            means = F.normalize(Groups.means(index, seen.sizes, number)(keys), dim=-1)
            index = torch.bmm(means, keys.transpose(1, 2)).argmax(1).scatter(1, centres, positions(centres))
        return Plan(Groups.means(index, seen.sizes, number), Groups.sums(index, number), centres)
