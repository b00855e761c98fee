"""How much each word of a caption counts: the more, the harder it is to guess without the picture (PRIOR, 2505.08971).

Legend: K words that are learned, of several captions, in any order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tessera.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Importance:
    """The factor of word i is k w_i / (w_1 + ... + w_k) over the k learned words of its caption, where
    w = max(1 - P, floor) ** alpha and P is what a model that sees no picture gives the word (the figure of the official
    repository). The factors of a caption sum to k, whatever its length.

    Args:
        alpha: 0 counts all words the same, 1 is the published choice.
        floor: least 1 - P. A caption of which all is certain becomes one in which all counts the same.
        clip: largest factor, 0 for none. What it cuts off goes to no other word, so that a caption's sum falls below k.

    Raises:
        UserError: an alpha below 0, a floor outside (0, 1], a clip above 0 and below 1.
    """

    alpha: float = 1.0
    floor: float = 1e-3
    clip: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.alpha < float("inf"):
            raise UserError(f"alpha is {self.alpha}; it is 0 or more")
        if not 0 < self.floor <= 1:
            raise UserError(f"floor is {self.floor}; it is above 0 and at most 1")
        if not (self.clip == 0 or self.clip >= 1):
            raise UserError(f"clip is {self.clip}; it is 0 for none, or at least 1, the mean of the factors")

    @torch.no_grad()
    def __call__(self, blind: Tensor, caption: Tensor) -> Tensor:
        """Factors float32 [K], without gradient.

        Args:
            blind: P of each word, [K].
            caption: integer [K], the number of each word's caption; any numbers.
        """
        weights = (1 - blind.float()).clamp(min=self.floor) ** self.alpha
        captions, place = caption.unique(return_inverse=True)
        # Over its largest first: so equal weights are 1 and their factors 1 exactly, and tiny ones do not vanish.
        largest = weights.new_zeros(len(captions)).scatter_reduce(0, place, weights, "amax", include_self=False)
        weights = weights / largest[place]
        total = weights.new_zeros(len(captions)).index_add(0, place, weights)
        factors = place.bincount(minlength=len(captions))[place] * weights / total[place]
        return factors.clamp(max=self.clip) if self.clip else factors
