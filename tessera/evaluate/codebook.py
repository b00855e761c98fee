"""What a codebook is worth: how much of it is used, how well pictures come back, how well codes can be foretold.

Legend: n pictures of N codes each, K codes in the codebook.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image as PIL
from scipy.special import entr
from torch import Tensor

from tessera.data.images import Pixels
from tessera.evaluate.intervals import CONFIDENCE, Estimate, exact_binomial
from tessera.models.image_ar import ImageARModel
from tessera.models.vq import VQTokenizer

BATCH = 64
_RESAMPLES = 1000


class Restored(NamedTuple):
    """Pictures through the codes and back.

    Attributes:
        ids: int64 [n, N].
        errors: mean squared error of each picture on the scale [0, 1], float64 [n].
    """

    ids: Tensor
    errors: np.ndarray


@torch.no_grad()
def restored(tokenizer: VQTokenizer, pictures: Sequence[PIL.Image], pixels: Pixels) -> Restored:
    """One picture or more through a tokenizer in evaluation mode."""
    ids, errors = [], []
    for start in range(0, len(pictures), BATCH):
        arrays = np.stack([pixels.one(picture) for picture in pictures[start : start + BATCH]])
        values = torch.from_numpy(arrays).to(tokenizer.device)
        found = tokenizer.encode(values)
        again = tokenizer.decode(found.embeds, found.grid).float()
        ids.append(found.ids.cpu())
        errors.append((again - values).square().mean((1, 2, 3)).double().cpu())
    return Restored(torch.cat(ids), torch.cat(errors).numpy())


def usage(ids: Tensor, codes: int) -> Estimate:
    """Share of the `codes` that appear in ids int [n, N] at all, as the papers report it, with the exact interval of a
    share of so many. Codes that few pictures need are missed where n * N is not much larger than K."""
    return exact_binomial(len(torch.unique(ids)), codes)


def perplexity(ids: Tensor, codes: int) -> Estimate:
    """Exponential of the entropy of the codes in ids int [n, N]: how many equally frequent ones would be as varied, 1
    to K. The interval is the bootstrap's over pictures."""
    counts = torch.zeros(len(ids), codes).scatter_add_(1, ids, torch.ones(ids.shape)).numpy()
    drawn = np.random.default_rng(0).multinomial(len(ids), np.full(len(ids), 1 / len(ids)), size=_RESAMPLES)
    low, high = np.quantile(_varied(drawn @ counts), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(float(_varied(counts.sum(0))), float(low), float(high), len(ids))


def _varied(counts: np.ndarray) -> np.ndarray:
    """Perplexity of counts [..., K]."""
    shares = counts / counts.sum(-1, keepdims=True)
    return np.exp(entr(shares).sum(-1))


@torch.no_grad()
def bits_per_code(model: ImageARModel, ids: Tensor, labels: Tensor | None = None) -> np.ndarray:
    """Mean of -log2 p of the codes of each picture, float64 [n]; log2 K where nothing was learned.

    Args:
        ids: int64 [n, N].
        labels: int64 [n]; None tells no class.
    """
    found = []
    for start in range(0, len(ids), BATCH):
        part = ids[start : start + BATCH].to(model.device)
        told = None if labels is None else labels[start : start + BATCH].to(model.device)
        scores = model(part, told).logits.float().log_softmax(-1)
        nats = -scores.gather(-1, part[..., None])[..., 0].double().mean(1)
        found.append(nats.cpu() / np.log(2))
    return torch.cat(found).numpy()


@torch.no_grad()
def code_features(model: ImageARModel, ids: Tensor, block: int | None = None) -> np.ndarray:
    """Averaged features float32 [n, W] of a block, by default the middle one; see `ImageARModel.features`."""
    parts = [model.features(part.to(model.device), block).float().cpu() for part in ids.split(BATCH)]
    return torch.cat(parts).numpy()
