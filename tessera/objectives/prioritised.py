"""The next word of captions, weighted by what a blind model thought of it (PRIOR): for any model that gives the scores
of the words that are learned.

Legend: B rows, L positions, K learned words, V words of the vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tessera.objectives.importance import Importance
from tessera.objectives.next_token import next_token
from tessera.objectives.routing import route

Terms = dict[str, tuple[Tensor, int] | tuple[Tensor, int, float]]
NAMES = ("words", "unweighted", "covariance")


def prioritised(logits: Tensor, words: Tensor, factors: Tensor) -> Terms:
    """The loss "words" of the engine, and two sums that are only looked at: "unweighted", the loss without factors, and
    "covariance", what the factors change, which is k cov(w, loss) / mean(w) summed over captions.

    Args:
        logits: [K, V], computed at the positions before the words.
        words: integer [K].
        factors: [K], those of `Importance`.
    """
    weighted = next_token(logits, words, factors)
    with torch.no_grad():
        plain = next_token(logits, words)
        change = next_token(logits, words, factors - 1)
    return {
        "words": (weighted.total, weighted.number),
        "unweighted": (plain.total, plain.number, 0.0),
        "covariance": (change.total, change.number, 0.0),
    }


def factors_of(importance: Importance, labels: Tensor, segment_ids: Tensor, blind: Tensor) -> Tensor:
    """Factors float32 [K] of the learned words of packed rows, in reading order.

    Args:
        labels, segment_ids: [B, L] as in a `Batch`; a caption is what is learned of one sequence.
        blind: float [B, L], the blind model's probability of each learned word, at its own position.
    """
    steps = route(labels, None, segment_ids).text
    row = torch.arange(len(labels), device=labels.device)[:, None] * (int(segment_ids.max()) + 1)
    return importance(blind[:, 1:][steps], (row + segment_ids)[:, 1:][steps])
