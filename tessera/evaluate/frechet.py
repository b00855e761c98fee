"""Fréchet distance between two sets of features, beside what two samples of one and the same set would have.

Heusel et al. 2017, equation 6: |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), of normal distributions fitted to
the sets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from tessera.errors import UserError
from tessera.evaluate.intervals import CONFIDENCE, Estimate

FEWEST = 20  # rows of each set; an interval from fewer would say nothing
_GROUPS = 10


@dataclass(frozen=True, slots=True)
class FrechetScore:
    """`distance` between the sets, and its `floor`, the distance between disjoint halves of the real set.

    Both are biased upwards by small samples, and alike, since all sets have the same `size`: compare them with
    each other, not with figures from other sizes.
    """

    distance: Estimate
    floor: Estimate
    size: int


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


def frechet_score(real: ArrayLike, generated: ArrayLike, *, splits: int = 3, seed: int = 0) -> FrechetScore:
    """Distance between real and generated features, with the real-versus-real floor at the same sample size.

    Real features [n, d] are cut at random into two halves; one stands for the real set and the other for the
    generated one [m, d]. All sets, in both numbers, have min(n // 2, m) rows; `splits` cuts are averaged.
    Intervals come from the jackknife over ten groups of rows: the bootstrap repeats rows, which makes a set look
    narrower than it is.

    Raises:
        UserError: fewer than 20 rows a set, or features of different widths.
    """
    truth, drawn = _features(real), _features(generated)
    size = min(len(truth) // 2, len(drawn))
    if size < FEWEST:
        raise UserError(
            f"{len(truth)} real features are too few to be halved, or {len(drawn)} generated ones too few;"
            f" give {2 * FEWEST} and {FEWEST} or more"
        )
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(len(truth)) for _ in range(splits)]
    halves = [(order[:size], order[size : 2 * size]) for order in orders]
    fakes = [rng.permutation(len(drawn))[:size] for _ in range(splits)]
    real_group, drawn_group = (rng.permutation(len(rows)) % _GROUPS for rows in (truth, drawn))

    def distance(left_out: int) -> float:
        pairs = ((half, fake) for (half, _), fake in zip(halves, fakes, strict=True))
        return _mean(
            (truth[half[real_group[half] != left_out]], drawn[fake[drawn_group[fake] != left_out]])
            for half, fake in pairs
        )

    def floor(left_out: int) -> float:
        return _mean(tuple(truth[rows[real_group[rows] != left_out]] for rows in pair) for pair in halves)

    return FrechetScore(_jackknife(distance, size), _jackknife(floor, size), size)


def _mean(pairs) -> float:
    return float(np.mean([frechet_distance(left, right) for left, right in pairs]))


def _jackknife(statistic: Callable[[int], float], size: int) -> Estimate:
    """`statistic(-1)` of everything, and its interval from the values with one group left out at a time."""
    value = statistic(-1)
    without = np.array([statistic(group) for group in range(_GROUPS)])
    error = np.sqrt((_GROUPS - 1) / _GROUPS * ((without - without.mean()) ** 2).sum())
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, _GROUPS - 1)) * float(error)
    return Estimate(value, max(0.0, value - reach), value + reach, size)
