"""Recall@k of retrieval: between two sets of features whose rows belong together, or by ready scores."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from tessera.errors import UserError
from tessera.evaluate.intervals import Estimate, exact_binomial


def ranks_of_own(scores: ArrayLike, own: ArrayLike) -> np.ndarray:
    """How many targets score at least as high for each query as its own, itself apart: int [n], 0 is best.

    A tie counts against the query, so that scores that are all the same rank last, not first.

    Args:
        scores: float [n, m], one column for each target.
        own: int [n], the column of each query's own target.
    """
    table = np.asarray(scores, dtype=np.float64)
    mine = table[np.arange(len(table)), np.asarray(own)]
    return np.asarray((table >= mine[:, None] - 1e-9).sum(axis=1) - 1)


def ranks(queries: ArrayLike, targets: ArrayLike) -> np.ndarray:
    """How many targets are at least as close to each query as its own, by the rules of `ranks_of_own`: int [n].

    Features float [n, d] are compared by cosine.

    Raises:
        UserError: the two sets have different shapes.
    """
    left, right = (np.asarray(features, dtype=np.float64) for features in (queries, targets))
    if left.ndim != 2 or left.shape != right.shape:
        raise UserError(f"features to retrieve must be two equal arrays [n, d], not {left.shape} and {right.shape}")
    left, right = (side / np.maximum(np.linalg.norm(side, axis=1, keepdims=True), 1e-12) for side in (left, right))
    found = np.empty(len(left), dtype=int)
    for start in range(0, len(left), 1024):
        alike = left[start : start + 1024] @ right.T
        found[start : start + 1024] = ranks_of_own(alike, start + np.arange(len(alike)))
    return found


def recall(queries: ArrayLike, targets: ArrayLike, k: int) -> Estimate:
    """Share of queries [n, d] whose own target [n, d] (the same row) is among the k nearest by cosine."""
    hits = ranks(queries, targets) < k
    return exact_binomial(int(hits.sum()), len(hits))


def recall_both_ways(images: ArrayLike, texts: ArrayLike, ks: tuple[int, ...] = (1, 5, 10)) -> dict[str, Estimate]:
    """Recall@k from pictures to texts and from texts to pictures, with the share that chance would reach."""
    forth, back = ranks(images, texts), ranks(texts, images)
    found = {}
    for k in ks:
        for name, order in (("image to text", forth), ("text to image", back)):
            found[f"{name} recall@{k}"] = exact_binomial(int((order < k).sum()), len(order))
        chance = min(1.0, k / len(forth))
        found[f"chance recall@{k}"] = Estimate(chance, chance, chance, len(forth))
    return found
