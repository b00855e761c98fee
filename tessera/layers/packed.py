"""Attention inside the sequences of packed rows, whose cost is that of each sequence alone.

Under a mask, a row of L positions costs L x L whatever it holds. Here the sequences are gathered by length, each group
is attended to causally, and the results go back to their places; what is computed is the same.

Legend: B rows, L positions, T = B L, S sequences of a group, l its longest, R = the sum of S l over groups, H heads,
G key-value heads, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tessera.layers.attention import NAME, attend
from tessera.layers.autocast import as_autocast
from tessera.layers.masks import block_causal


@dataclass(frozen=True)
class Packing:
    """Where the sequences of packed rows lie.

    Args:
        groups: (S, l) of each group.
        places: int64 [R], which of the T positions is gathered; a sequence shorter than l repeats its last one.
        fillers: int64 [F], which of the R are such repetitions.
        back: int64 [T], where each position went among the R.
    """

    groups: Sequence[tuple[int, int]]
    places: Tensor
    fillers: Tensor
    back: Tensor

    @classmethod
    def of(cls, segment_ids: Tensor) -> Packing:
        """Of rows with `segment_ids` [B, L]. Positions of one sequence stand side by side and share a number; padding
        (0) is a sequence of its own."""
        segments = segment_ids.cpu()
        new = torch.ones_like(segments, dtype=torch.bool)
        new[:, 1:] = segments[:, 1:] != segments[:, :-1]
        starts = new.flatten().nonzero().flatten()
        lengths = torch.diff(starts, append=torch.tensor([segments.numel()]))
        groups, places, fillers, back, before = [], [], [], torch.empty(segments.numel(), dtype=torch.int64), 0
        widths = _rounded(lengths)
        for width in widths.unique().tolist():
            chosen = widths == width
            first, own = starts[chosen, None], lengths[chosen, None]
            longest = int(own.max())
            steps = torch.arange(longest)
            at = first + steps.clamp(max=own - 1)
            real = (steps < own).flatten()
            here = before + torch.arange(at.numel())
            back[at.flatten()[real]] = here[real]
            groups.append((len(first), longest))
            places.append(at.flatten())
            fillers.append(here[~real])
            before += at.numel()
        moved = (part.to(segment_ids.device) for part in (torch.cat(places), torch.cat(fillers), back))
        return cls(groups, *moved)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None) -> Tensor:
        """Causal attention inside each sequence.

        Args:
            q: [B, H, L, D].
            k, v: [B, G, L, D].
            scale: as `attend` takes it.

        Returns:
            [B, L, H, D].
        """
        batch, heads, length, width = q.shape
        q, k, v = as_autocast(q, k, v)
        if list(self.groups) == [(batch, length)]:  # each row is one sequence: everything is in its place
            return attend(q, k, v, causal=length > 1, scale=scale).transpose(1, 2)
        taken = [_Gather.apply(x.transpose(1, 2).flatten(0, 1), self.places, self.back) for x in (q, k, v)]
        sizes = [number * longest for number, longest in self.groups]
        read = []
        for (number, longest), *parts in zip(self.groups, *(x.split(sizes) for x in taken), strict=True):
            each = (x.unflatten(0, (number, longest)).transpose(1, 2) for x in parts)
            read.append(attend(*each, causal=longest > 1, scale=scale).transpose(1, 2).flatten(0, 1))
        put = _Return.apply(torch.cat(read), self.places, self.fillers, self.back)
        return put.view(batch, length, heads, width)


def packed_rows(segment_ids: Tensor, implementation: str | None) -> dict[str, Any]:
    """What a language model of transformers is called with, so that packed rows with `segment_ids` [B, L] are read each
    sequence by itself: by groups where its `implementation` of attention is ours, else by a mask."""
    if implementation != NAME:
        return {"attention_mask": block_causal(segment_ids)}
    batch, length = segment_ids.shape
    # Of the form that transformers takes as ready, without memory: attention never looks at it.
    ready = torch.ones(1, dtype=torch.bool, device=segment_ids.device).expand(batch, 1, length, length)
    return {"attention_mask": ready, "within": Packing.of(segment_ids).attend}


def _rounded(lengths: Tensor) -> Tensor:
    """Lengths up to the next power of two or one and a half of it: few groups, and little filling in them."""
    power = 2 ** torch.ceil(torch.log2(lengths.clamp(min=16).double())).long()
    return torch.where(lengths <= power * 3 // 4, power * 3 // 4, power)


class _Gather(torch.autograd.Function):
    """Positions [T, ...] -> [R, ...]. Fillers get no gradient: nothing real reads them, for they come after."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return x.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (back,) = ctx.saved_tensors
        return gradient.index_select(0, back), None, None


class _Return(torch.autograd.Function):
    """[R, ...] -> positions [T, ...], fillers left out."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor, fillers: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(places, fillers)
        return x.index_select(0, back)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        places, fillers = ctx.saved_tensors
        return gradient.index_select(0, places).index_fill_(0, fillers, 0), None, None, None
