"""Cross-entropy of the next word.

Legend: K positions before learned words, V words, d width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tessera.layers.autocast import as_autocast
from tessera.objectives.tally import Tally

BLOCK = 2**26  # scores that are held at once, over all words
SLICE = 2**20  # scores whose probabilities are taken at once on a CPU: they stay in its cache


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


def next_token_of(hidden: Tensor, head: Tensor, words: Tensor) -> Tally:
    """`next_token(hidden @ head.T, words)`, whose gradient is taken block by block while the scores are at hand: they
    are held once, in the type of the product, and never in single precision whole.

    Args:
        hidden: [K, d], at the positions before the words.
        head: [V, d].
        words: integer [K].
    """
    hidden, head = as_autocast(hidden, head)
    return Tally(_LinearCrossEntropy.apply(hidden, head, words.long()), len(words))


class _LinearCrossEntropy(torch.autograd.Function):
    """Sum of the cross-entropies of hidden [K, d] @ head [V, d].T; its gradients are ready when it returns."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, words: Tensor) -> Tensor:
        ctx.kinds = (hidden.dtype, head.dtype)
        total = hidden.new_zeros((), dtype=torch.float32)
        asked = ctx.needs_input_grad
        by_hidden = torch.empty_like(hidden) if asked[0] else None
        by_head: Tensor | None = None
        rows = max(1, BLOCK // len(head))
        for part in range(0, len(hidden), rows):
            these = slice(part, part + rows)
            scores = hidden[these] @ head.T
            total += _scores_to_gradient(scores, words[these])
            if by_hidden is not None:
                torch.mm(scores, head, out=by_hidden[these])
            if asked[1]:
                found = scores.T @ hidden[these]
                by_head = found if by_head is None else by_head.float().add_(found)
        if asked[1] and by_head is None:
            by_head = torch.zeros_like(head)
        ctx.save_for_backward(by_hidden, by_head)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        found = [
            None if one is None else (one * gradient).to(kind)
            for one, kind in zip(ctx.saved_tensors, ctx.kinds, strict=True)
        ]
        return found[0], found[1], None


def _scores_to_gradient(scores: Tensor, words: Tensor) -> Tensor:
    """The sum of the cross-entropies of scores [K, V], which become their gradient in place."""
    rows = max(1, SLICE // scores.shape[1]) if scores.device.type == "cpu" else len(scores)
    total = scores.new_zeros((), dtype=torch.float32)
    for part in range(0, len(scores), rows):
        these, asked = scores[part : part + rows], words[part : part + rows, None]
        chances = these.float().log_softmax(-1)
        total -= chances.gather(1, asked).sum()
        chances.exp_().scatter_add_(1, asked, -torch.ones_like(asked, dtype=chances.dtype))
        these.copy_(chances)
    return total
