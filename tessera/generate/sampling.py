"""How the next word is taken from its scores."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tessera.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Temperature 0 takes the best word; otherwise draw among the `top_k` best (0: all) and, of these, the
    fewest whose probabilities reach `top_p`.

    Raises:
        UserError: a value out of its range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UserError(f"temperature is {self.temperature}; give a number of 0 (no chance) or more")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}; give a share above 0 and up to 1 (all words)")
        if self.top_k < 0:
            raise UserError(f"top_k is {self.top_k}; give a number of words, 0 for all")


GREEDY = Sampling()


def choose(logits: Tensor, sampling: Sampling = GREEDY, generator: torch.Generator | None = None) -> Tensor:
    """Scores [K, V] -> words int64 [K]. Words scored -inf are never taken.

    Raises:
        UserError: a draw is asked for without a generator: every random draw comes from a seed.
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    if generator is None:
        raise UserError(f"temperature {sampling.temperature} draws at random; give a generator with a seed")
    scores, words = (logits.float() / sampling.temperature).sort(-1, descending=True)
    if sampling.top_k:
        scores, words = scores[:, : sampling.top_k], words[:, : sampling.top_k]
    shares = scores.softmax(-1)
    # A word stays while those before it have not reached top_p: the best one always does.
    shares = shares.masked_fill(shares.cumsum(-1) - shares >= sampling.top_p, 0.0)
    return words.gather(-1, torch.multinomial(shares, 1, generator=generator)).squeeze(-1)
