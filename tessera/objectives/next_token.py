"""Cross-entropy of the next word."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from tessera.objectives.tally import Tally


def next_token(logits: Tensor, words: Tensor, weights: Tensor | None = None) -> Tally:
    """Sum of -log p(word), in nats and in fp32.

    Args:
        logits: [K, V], computed at the positions before the words.
        words: integer [K].
        weights: [K], factors on the single losses; None for 1. The number of targets stays K.
    """
    if weights is None:
        return Tally(F.cross_entropy(logits.float(), words.long(), reduction="sum"), len(words))
    each = F.cross_entropy(logits.float(), words.long(), reduction="none")
    return Tally((weights.detach() * each).sum(), len(words))
