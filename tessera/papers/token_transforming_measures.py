"""What the study of token reduction measures beside a picture's class: the classes of its pixels, read from tokens that
were put back on the grid, and how much of the tokens themselves is lost.

Legend: n pictures of S x S pixels, b of them, N tokens on a square grid, C width, H heads, D width of a key.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tessera.data.dense import DenseReader
from tessera.data.images import Pixels
from tessera.data.source import Source
from tessera.evaluate.classification import BATCH
from tessera.evaluate.probes import unexplained
from tessera.models.classifier import ImageClassifier
from tessera.models.reduced_vit import ReducedViT, Step
from tessera.reduce.base import Reducer
from tessera.reduce.schedule import Schedule
from tessera.vision.vit import PlainViT


class Seen(NamedTuple):
    """What a classifier sees in pictures: logits of their class [n, classes], and the tokens of its ViT [n, N, C]."""

    logits: Tensor
    tokens: Tensor


@torch.no_grad()
def see(model: ImageClassifier, pictures: Tensor) -> Seen:
    """That of pictures [n, 3, S, S], float32 on the CPU."""
    logits, tokens = [], []
    for some in pictures.split(BATCH):
        seen = model.backbone(some.to(model.device, model.dtype))
        logits.append(model.head(model.vectors(seen)).float().cpu())
        tokens.append(seen.tokens.float().cpu())
    return Seen(torch.cat(logits), torch.cat(tokens))


def with_labels(
    source: Source, classes: Sequence[str], pixels: Pixels, most: int | None = None
) -> tuple[Tensor, Tensor]:
    """Pictures float32 [n, 3, S, S] and the classes of their pixels int64 [n, S, S], of all samples or the first."""
    read = DenseReader("segmentation", classes, pixels)
    rows = [read(source[place]) for place in range(min(len(source), most or len(source)))]
    pictures, labels = (torch.from_numpy(np.stack([row[name] for row in rows])) for name in ("pixel_values", "labels"))
    return pictures, labels


class Met(NamedTuple):
    """What a reducer meets in a block: tokens [b, 1 + N, C] behind its attention, the class token first, its queries
    and keys [b, H, 1 + N, D], the scale of its scores, and the grid."""

    x: Tensor
    q: Tensor
    k: Tensor
    scale: float | None
    grid: tuple[int, int]


@torch.no_grad()
def meetings(model: ImageClassifier, pictures: Tensor) -> Iterator[Met]:
    """What reducers meet of pictures [n, 3, S, S] in the first block in which a ViT's tokens are reduced."""
    plain = model.backbone
    assert isinstance(plain, PlainViT)
    eyes = ReducedViT.over(plain)
    first = Schedule().places(len(eyes.blocks))[0]
    for some in pictures.split(BATCH):
        x, grid = eyes.embed(some.to(eyes.device, eyes.dtype))
        for block in eyes.blocks[:first]:
            x = block(x)
        met: list[Met] = []

        def meet(x: Tensor, q: Tensor, k: Tensor, scale: float | None) -> Tensor:
            met.append(Met(x, q, k, scale, grid))  # noqa: B023
            return x

        eyes.blocks[first](x, None, meet)
        yield from met


@torch.no_grad()
def lost(reducer: Reducer, keep: float, met: Met) -> Tensor:
    """The share of the tokens that is lost where `keep` of them are left, float64 [b]; see `unexplained`."""
    number = math.ceil(keep * (met.x.shape[1] - 1))
    left = Step(reducer, number, None, None, met.grid)(met.x, met.q, met.k, met.scale)
    return unexplained(met.x[:, 1:], left[:, 1:])
