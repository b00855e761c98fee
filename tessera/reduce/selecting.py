"""Reducers that keep some tokens and let go of the others: pruning, EViT, and random dropping, the control.

Legend: B batch, N tokens in, M tokens out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tessera.reduce.base import Plan, Reducer, Seen
from tessera.reduce.maps import Dense, Groups, Pick, Stacked, positions


def most_important(importance: Tensor, number: int) -> Tensor:
    """The places of the largest of [B, N], in the order of their places, [B, number]."""
    return importance.topk(number, dim=1).indices.sort(1).values


def _picked(index: Tensor, sources: int) -> Plan:
    one_hot = Pick(index, sources)
    return Plan(one_hot, one_hot, index)


@dataclass(frozen=True, kw_only=True)
class Prune(Reducer):
    """The M most important tokens, in their order; the others are lost."""

    name = "prune"
    drops = True

    @property
    def reads(self) -> frozenset[str]:
        """The importance."""
        return frozenset({"importance"})

    def plan(self, seen: Seen, number: int) -> Plan:
        """One-hot rows."""
        return _picked(most_important(seen.weighed(self.name), number), seen.sizes.shape[1])


@dataclass(frozen=True, kw_only=True)
class RandomDrop(Reducer):
    """M tokens at places drawn with a seed, the same for all examples, so that none depends on those beside it."""

    name = "random"
    drops = True
    seed: int = 0

    def plan(self, seen: Seen, number: int) -> Plan:
        """One-hot rows."""
        batch, sources = seen.sizes.shape
        generator = torch.Generator("cpu").manual_seed(self.seed)
        drawn = torch.randperm(sources, generator=generator, device="cpu")[:number].sort().values
        return _picked(drawn.to(seen.sizes.device).expand(batch, -1), sources)


@dataclass(frozen=True, kw_only=True)
class EViT(Reducer):
    """The M - 1 most important tokens, then one that is the mean of all others by importance (Liang et al. 2022).

    The official code weighs by importances as they are, which sum to less than 1; here they are normalised, as for
    every row of a W.
    """

    name = "evit"

    @property
    def reads(self) -> frozenset[str]:
        """The importance."""
        return frozenset({"importance"})

    def plan(self, seen: Seen, number: int) -> Plan:
        """One-hot rows and one dense one."""
        importance = seen.weighed(self.name)
        sources = importance.shape[1]
        if number == sources:
            return _picked(positions(importance), sources)
        index = most_important(importance, number - 1)
        rest = importance.float().scatter(1, index, 0.0)
        fused = rest / rest.sum(1, keepdim=True).clamp_min(torch.finfo(rest.dtype).tiny)
        to = torch.full_like(positions(importance), number - 1)  # all to the last output but those that stay
        to = to.scatter(1, index, torch.arange(number - 1, device=index.device).expand_as(index))
        strongest = fused.argmax(1, keepdim=True)
        return Plan(
            Stacked(Pick(index, sources), Dense(fused[:, None])),
            Groups.sums(to, number),
            torch.cat([index, strongest], 1),
        )
