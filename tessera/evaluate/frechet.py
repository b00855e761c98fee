"""Fréchet distance between two sets of features, beside what two samples of one and the same set would have.

Heusel et al. 2017, equation 6: |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), of normal distributions fitted to
the sets.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from tessera.errors import UserError


@dataclass(frozen=True, slots=True)
class FrechetScore:
    """`distance` between the sets, and its `floor`, the distance between disjoint halves of the real set."""

    distance: float
    floor: float
    real: int
    generated: int


def _features(values: ArrayLike) -> np.ndarray:
    features = np.asarray(values, dtype=np.float64)
    if features.ndim != 2 or len(features) < 2:
        raise UserError(f"a Fréchet distance needs two or more rows of features [n, d], not {list(features.shape)}")
    return features


def frechet_distance(left: ArrayLike, right: ArrayLike) -> float:
    """Distance between feature sets float [n, d] and [m, d]; never below 0.

    With centred and scaled data matrices A [n, d] and B [m, d] (C1 = A'A, C2 = B'B) the trace of the root is
    the sum of the singular values of A B': exact and stable for n < d (singular covariances), and
    nothing is added to their diagonals. The estimate is biased upwards for small sets: compare equal sizes.
    """
    first, second = _features(left), _features(right)
    if first.shape[1] != second.shape[1]:
        raise UserError(f"features of {first.shape[1]} and of {second.shape[1]} numbers cannot be compared")
    gap = first.mean(axis=0) - second.mean(axis=0)
    a, b = ((x - x.mean(axis=0)) / np.sqrt(len(x) - 1) for x in (first, second))
    root = np.linalg.svd(_root(a) @ _root(b).T, compute_uv=False).sum()
    return float(max(0.0, gap @ gap + (a * a).sum() + (b * b).sum() - 2 * root))


def _root(data: np.ndarray) -> np.ndarray:
    """A matrix R of at most d rows with R'R = data'data: spares the n x m product of large sets."""
    if len(data) <= data.shape[1]:
        return data
    return np.asarray(np.linalg.qr(data, mode="r"))


def frechet_score(real: ArrayLike, generated: ArrayLike, *, splits: int = 5, seed: int = 0) -> FrechetScore:
    """Distance between real and generated features, with the real-versus-real floor at the same sample size.

    Real features [n, d] are cut at random into two halves; one stands for the real set and the other for the
    generated one [m, d]. All sets, in both numbers, have min(n // 2, m) rows; `splits` cuts are averaged.
    """
    truth, drawn = _features(real), _features(generated)
    size = min(len(truth) // 2, len(drawn))
    if size < 2:
        raise UserError(f"{len(truth)} real features are too few to be halved; give 4 or more")
    rng = np.random.default_rng(seed)
    distances, floors = [], []
    for _ in range(splits):
        order = rng.permutation(len(truth))
        half, other = truth[order[:size]], truth[order[size : 2 * size]]
        distances.append(frechet_distance(half, drawn[rng.permutation(len(drawn))[:size]]))
        floors.append(frechet_distance(half, other))
    return FrechetScore(float(np.mean(distances)), float(np.mean(floors)), len(truth), len(drawn))
