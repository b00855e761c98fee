"""What a classifier says of pictures, and how often it is right.

Legend: n pictures, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL import Image as PIL
from torch import Tensor

from tessera.data.images import Pixels
from tessera.data.source import Source
from tessera.models.classifier import NamesClasses

BATCH = 128  # pictures that are looked at together
Guess = tuple[str, float]


def likeliest(shares: Tensor, classes: Sequence[str], top: int) -> list[list[Guess]]:
    """The `top` largest probabilities of each row of `shares` [n, K] with their classes, largest first."""
    best = shares.topk(min(top, len(classes)))
    return [
        [(classes[place], share) for share, place in zip(*row, strict=True)]
        for row in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]


@torch.no_grad()
def look(module: Any, pictures: Iterable[PIL.Image], pixels: Pixels) -> Iterator[Any]:
    """What `module` gives for the pictures, BATCH at a time."""
    left = iter(pictures)
    while some := list(islice(left, BATCH)):
        arrays = np.stack([pixels.one(picture) for picture in some])
        yield module(torch.from_numpy(arrays).to(module.device, module.dtype))


def probabilities(model: NamesClasses, pictures: Iterable[PIL.Image], pixels: Pixels) -> Tensor:
    """Float [n, K] on the CPU. The model is in evaluation mode."""
    parts = [out.logits.float().softmax(-1).cpu() for out in look(model, pictures, pixels)]
    return torch.cat(parts) if parts else torch.zeros(0, len(model.classes))


def hits(model: NamesClasses, source: Source, pixels: Pixels) -> np.ndarray:
    """For each sample of a source of pictures with class names, 1.0 where the likeliest class is its own, else 0.0."""
    samples = [source[place] for place in range(len(source))]
    guessed = probabilities(model, (sample.images[0].pil() for sample in samples), pixels).argmax(-1)
    classes = model.classes
    right = [classes[place] == sample.text for place, sample in zip(guessed.tolist(), samples, strict=True)]
    return np.array(right, dtype=np.float64)
