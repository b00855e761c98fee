"""Linear probe of an image encoder's tokens: the classes of pixels, read from each token alone.

Legend: n pictures of S x S pixels, N tokens on a square grid, C width, K classes of pixels, P pixels a side of a
token's tile.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tessera.evaluate.classification import BATCH
from tessera.evaluate.probes import linear_fit


@dataclass(frozen=True)
class PixelHead:
    """A linear layer on each token alone, whose outputs are the logits of its tile's pixels.

    Args:
        weight: [C + 1, K * P * P], the bias last.
    """

    weight: Tensor
    classes: int

    @classmethod
    def fitted(cls, tokens: Tensor, labels: Tensor, classes: int) -> PixelHead:
        """The head for tokens [n, N, C] and labels [n, S, S]: least mean cross-entropy of all pixels."""
        side = round(tokens.shape[1] ** 0.5)
        tile = labels.shape[-1] // side
        flat = tokens.flatten(0, 1)
        mean, deviation = flat.mean(0), flat.std(0).clamp_min(1e-6)
        told = labels.unflatten(2, (side, tile)).unflatten(1, (side, tile)).transpose(2, 3).reshape(-1, tile**2)

        def loss(outputs: Tensor) -> Tensor:
            return F.cross_entropy(outputs.unflatten(1, (classes, -1)), told)

        weight = linear_fit((flat - mean) / deviation, classes * tile**2, loss)
        weight[:-1] /= deviation[:, None]
        weight[-1] -= mean @ weight[:-1]
        return cls(weight, classes)

    def __call__(self, tokens: Tensor) -> Tensor:
        """The likeliest classes of pixels int64 [n, S, S], of tokens [n, N, C]."""
        side, found = round(tokens.shape[1] ** 0.5), []
        for some in tokens.split(BATCH):
            logits = (some @ self.weight[:-1] + self.weight[-1]).unflatten(2, (self.classes, -1))
            tiles = logits.argmax(2)  # [b, N, P * P]
            tile = round(tiles.shape[-1] ** 0.5)
            found.append(tiles.reshape(-1, side, side, tile, tile).transpose(2, 3).flatten(3, 4).flatten(1, 2))
        return torch.cat(found)
