"""Tokens to be the centres of groups, and how like them all others are.

Legend: B batch, N tokens, M centres, D width of a key.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tessera.errors import UserError, nearest
from tessera.reduce.base import Seen
from tessera.reduce.maps import take
from tessera.reduce.selecting import most_important

Centres = Literal["farthest", "importance", "strided", "mixed"]
KINDS: tuple[Centres, ...] = ("farthest", "importance", "strided", "mixed")


def check_kind(kind: str) -> None:
    """Raise UserError where no centres are chosen so."""
    if kind not in KINDS:
        raise UserError(f"centres cannot be {kind!r}{nearest(kind, KINDS)}")


def centres_of(kind: Centres, seen: Seen, number: int, name: str) -> tuple[Tensor, Tensor]:
    """Centres [B, M] in the order of their places, and the cosine of their keys with all keys, float32 [B, M, N].

    Args:
        kind: "farthest" takes the token least like all taken before, from the most important on (from the first, where
            no importance is given); "importance" the most important; "strided" evenly spaced places; "mixed" half by
            importance and then the farthest.
        name: of the reducer, for the message where importance is missing.
    """
    keys = F.normalize(seen.keys.float(), dim=-1)
    batch, sources, _ = keys.shape
    if kind == "farthest":
        if seen.importance is None:
            first = torch.zeros(batch, 1, dtype=torch.long, device=keys.device)
        else:
            first = seen.importance.argmax(1, keepdim=True)
    elif kind == "strided":
        step = torch.arange(number, device=keys.device)
        first = ((2 * step + 1) * sources // (2 * number)).expand(batch, -1)
    else:
        first = most_important(seen.weighed(name), number if kind == "importance" else -(-number // 2))
    return farthest(keys, number, first)


def farthest(keys: Tensor, number: int, first: Tensor) -> tuple[Tensor, Tensor]:
    """`first` and then, one by one, the token least like all taken before, until there are `number`.

    Each step depends on the one before, hence the loop; the rows that it compares are those that are given back, so
    that M N D multiply-adds are all there is. Where gradients are asked for the rows are computed once more, together:
    through the loop they would be added up over all keys M times.

    Args:
        keys: [B, N, D] of length 1.
        first: [B, F], different tokens.

    Returns:
        Centres [B, M] in the order of their places, and their rows of similarity [B, M, N].
    """
    across = keys.detach().transpose(1, 2)
    chosen, rows = [first], [torch.bmm(take(keys.detach(), first), across)]
    closest = rows[0].amax(1).scatter(1, first, float("inf"))
    for _ in range(number - first.shape[1]):
        chosen.append(closest.argmin(1, keepdim=True))
        rows.append(torch.bmm(take(keys.detach(), chosen[-1]), across))
        closest = torch.maximum(closest, rows[-1][:, 0]).scatter(1, chosen[-1], float("inf"))
    index, order = torch.cat(chosen, 1).sort(1)
    if torch.is_grad_enabled() and keys.requires_grad:
        return index, torch.bmm(take(keys, index), keys.transpose(1, 2))
    return index, take(torch.cat(rows, 1), order)
