"""Contrastive alignment of pictures and sentences (Radford et al. 2021), with optional hard negatives.

Shape legend: B pairs, W wrong sentences, D width of the shared space.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def contrastive(images: Tensor, texts: Tensor, scale: Tensor, negatives: Tensor | None = None) -> Tensor:
    """Symmetric cross-entropy over cosine similarities, summed over the B pairs.

    Args:
        images, texts: [B, D], of any length; row i of one belongs to row i of the other.
        scale: inverse temperature, a scalar.
        negatives: [W, D], sentences that are wrong in one word for one of the pictures; they join the sentences
            that every picture must tell its own from.
    """
    images, texts = F.normalize(images, dim=-1), F.normalize(texts, dim=-1)
    to_texts = scale * images @ texts.T
    target = torch.arange(len(images), device=images.device)
    text_to_image = F.cross_entropy(to_texts.T, target, reduction="sum")
    if negatives is not None:
        to_texts = torch.cat([to_texts, scale * images @ F.normalize(negatives, dim=-1).T], dim=1)
    return 0.5 * (F.cross_entropy(to_texts, target, reduction="sum") + text_to_image)
