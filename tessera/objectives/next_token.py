"""Cross-entropy of the next word."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from tessera.objectives.tally import Tally


def next_token(logits: Tensor, words: Tensor) -> Tally:
    """Sum of -log p(word), in nats and in fp32.

    Args:
        logits: [K, V], computed at the positions before the words.
        words: integer [K].
    """
    return Tally(F.cross_entropy(logits.float(), words.long(), reduction="sum"), len(words))
