"""Least-squares starts: maps that read from the first step on what training would take long to find.

Shape legend: n samples; C channels of a state; K channels of a target; P places.
"""

from __future__ import annotations

import torch
from torch import Tensor

QUARTERS = 4


def ridge(states: Tensor, targets: Tensor, strength: float = 1e-3) -> Tensor:
    """Ridge regression W [K, C] with states [n, C] W^T ~ targets [n, K]."""
    gram = states.T @ states
    gram.diagonal().add_(strength * gram.diagonal().mean())
    return torch.linalg.solve(gram, states.T @ targets).T


def affine(states: Tensor, targets: Tensor, strength: float = 1e-5) -> tuple[Tensor, Tensor]:
    """Ridge regression with W [K, C] and an offset b [K], on channels brought to one spread."""
    centre, middle = states.mean(dim=0), targets.mean(dim=0)
    spread = states.std(dim=0).clamp(min=1e-4)
    weight = ridge((states - centre) / spread, targets - middle, strength) / spread
    return weight, middle - weight @ centre


def place_readers(states: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Linear discriminants that tell at which place a state was taken, in the form of attention's queries and keys.

    Args:
        states: [n, P, C], of the same places of n pictures.
        rank: width of queries and keys; with P - 1 nothing is lost.

    Returns:
        queries [P, rank], key weight [rank, C] and key bias [rank]: the product of query p and of the key of a state
        is the log-likelihood that the state was taken at p, less the mean of that over all places.
    """
    means = states.mean(dim=0)
    centred = (states - means).flatten(0, 1)
    within = centred.T @ centred / len(centred)
    within.diagonal().add_(1e-4 * within.diagonal().mean())
    middle = means.mean(dim=0)
    weight = torch.linalg.solve(within, (means - middle).T).T
    bias = -weight @ middle - 0.5 * (weight * (means - middle)).sum(dim=1)
    scores = torch.cat([weight, bias[:, None]], dim=1)
    left, strength, right = torch.linalg.svd(scores - scores.mean(dim=0), full_matrices=False)
    strength = strength[:rank].sqrt()
    keys = right[:rank] * strength[:, None]
    return left[:, :rank] * strength, keys[:, :-1], keys[:, -1]


def quarters(blocks: int) -> Tensor:
    """Patches of each block of 2 x 2, its four quarters row by row, int [blocks * blocks, 4]."""
    grid = torch.arange(QUARTERS * blocks * blocks).view(blocks, 2, blocks, 2)
    return grid.permute(0, 2, 1, 3).reshape(-1, QUARTERS)
