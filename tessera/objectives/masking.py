"""What masked prediction hides: words (BERT, Devlin et al. 2019) and regions of a picture (LXMERT, Tan & Bansal 2019).

Of those chosen 80 % are hidden, 10 % replaced by a random other and 10 % left as they are, so that a model cannot tell
by the mark alone where it will be asked.

Legend: L words, B pictures, K regions of a picture, F width of their features.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tessera.data.sequence import IGNORED

HIDDEN, REPLACED = 0.8, 0.1  # shares of what is chosen; the rest is kept
KEPT, ZEROED, EXCHANGED = 0, 1, 2  # what becomes of a chosen region; -1 marks one that is not chosen
NOT_CHOSEN = -1


def _fates(number: int, rate: float, rng: np.random.Generator) -> np.ndarray:
    """int8 [number]: NOT_CHOSEN, or what becomes of each that `rate` chooses."""
    drawn = rng.random(number) / rate  # below 1 with chance `rate`, and then uniform
    fates = np.full(number, NOT_CHOSEN, np.int8)
    fates[drawn < 1] = KEPT
    fates[drawn < HIDDEN + REPLACED] = EXCHANGED
    fates[drawn < HIDDEN] = ZEROED
    return fates


def mask_words(
    ids: np.ndarray, mask_id: int, vocabulary: int, rng: np.random.Generator, rate: float = 0.15
) -> tuple[np.ndarray, np.ndarray]:
    """Words with some hidden, and what is asked: both int64 [L].

    Args:
        ids: [L], words alone, without marks such as [CLS].
        mask_id: what stands for a hidden word.
        vocabulary: a replaced word becomes any of 0 .. vocabulary - 1.

    Returns:
        The ids, and labels that are -100 where nothing is asked.
    """
    ids = np.asarray(ids, np.int64)
    fates = _fates(len(ids), rate, rng)
    others = rng.integers(vocabulary, size=len(ids))
    shown = np.where(fates == ZEROED, mask_id, np.where(fates == EXCHANGED, others, ids))
    return shown, np.where(fates == NOT_CHOSEN, IGNORED, ids)


def mask_regions(number: int, rng: np.random.Generator, rate: float = 0.15) -> tuple[np.ndarray, np.ndarray]:
    """What becomes of each of `number` regions, int8 [number], and a draw in [0, 1) each that picks its stand-in."""
    return _fates(number, rate, rng), rng.random(number, dtype=np.float32)


def hide_regions(features: Tensor, fates: Tensor, draws: Tensor, valid: Tensor) -> Tensor:
    """Features [B, K, F] with the fates of `mask_regions` carried out.

    A stand-in is a region of another picture of the batch; with one picture alone there is none, and zeros stand in.

    Args:
        fates: integer [B, K].
        draws: float [B, K] in [0, 1).
        valid: bool [B, K], where there is a region.
    """
    flat, owner = features.flatten(0, 1), torch.arange(len(features), device=features.device)
    places = valid.flatten().nonzero().flatten()  # of all regions, picture by picture
    counts = valid.sum(dim=1)
    first = counts.cumsum(0) - counts
    others = len(places) - counts
    # The chosen one among the others, counted on from the end of one's own regions.
    step = (draws * others[:, None]).long().clamp(max=(others - 1).clamp(min=0)[:, None])
    start = (first + counts)[owner][:, None]
    chosen = places[(start + step) % len(places)]
    donors = flat[chosen.flatten()].view_as(features) * (others > 0)[:, None, None]
    fates = fates[..., None]
    return torch.where(fates == ZEROED, 0.0, torch.where(fates == EXCHANGED, donors, features))
