"""Features of regions by a CLIP vision encoder, where there are no published ones.

Each region is shown alone: cut out, scaled so that its longer side takes a third of the encoder's input, and laid in
the middle of an empty picture of the border's colour. Its feature is the mean of the last patch states under it. So a
feature says what a region is, its box says where it is and how large, and equal regions are looked at once.

Legend: M pictures, K regions of a picture, T tiles, S side of the encoder's input, P patches a side, C width.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image as PIL
from torch import Tensor
from transformers import CLIPVisionModel

from tessera.data.images import Pixels
from tessera.data.regions import Regions
from tessera.data.sample import Image
from tessera.train.features import FeatureStore

_SHARE = 3  # of the input's side; what mini/clip was taught on are objects of about this size
_TOGETHER = 256  # tiles that are encoded at once


@dataclass(frozen=True)
class _Tile:
    """One region alone: its picture, and the box in it, in shares of the sides."""

    picture: PIL.Image
    box: tuple[float, float, float, float]

    def __call__(self) -> PIL.Image:
        return self.picture


def alone(picture: PIL.Image, box: Sequence[float], side: int) -> _Tile:
    """The region `box` (in shares) of a picture, alone in the middle of an empty square of `side` pixels."""
    x0, y0 = math.floor(box[0] * picture.width), math.floor(box[1] * picture.height)
    x1, y1 = math.ceil(box[2] * picture.width), math.ceil(box[3] * picture.height)
    cut = picture.crop((x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)))
    scale = side / _SHARE / max(cut.size)
    width, height = (max(1, round(length * scale)) for length in cut.size)
    left, top = (side - width) // 2, (side - height) // 2
    pixels = np.asarray(picture)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    canvas = PIL.new("RGB", (side, side), tuple(np.median(border, axis=0).astype(int).tolist()))
    canvas.paste(cut.resize((width, height), PIL.Resampling.BILINEAR), (left, top))
    return _Tile(canvas, (left / side, top / side, (left + width) / side, (top + height) / side))


def under(box: Sequence[float], patches: int) -> Tensor:
    """Share of each of P * P patches in a box that is given in shares, float32 [P * P], sum 1."""
    edges = np.arange(patches + 1) / patches
    along = [
        np.clip(np.minimum(edges[1:], box[end]) - np.maximum(edges[:-1], box[start]), 0, None)
        for start, end in ((0, 2), (1, 3))
    ]
    weights = np.outer(along[1], along[0]).ravel()
    return torch.from_numpy(weights / weights.sum()).float()


class RegionEncoder:
    """A frozen CLIP vision encoder that looks at regions, and remembers what it saw of pictures with a key.

    Args:
        limit: bytes to remember at most.
    """

    def __init__(self, encoder: CLIPVisionModel, *, limit: int = 2**29) -> None:
        self.encoder = encoder.eval().requires_grad_(False)
        self.pixels = Pixels(encoder.config.image_size)  # type: ignore[arg-type]
        self.limit = limit
        self._tiles = FeatureStore(self._encode, limit=limit)
        self._known: dict[str, Tensor] = {}
        self._bytes = 0

    @property
    def width(self) -> int:
        """C."""
        return self.encoder.config.hidden_size

    def __call__(self, images: Sequence[Image], regions: Sequence[Regions]) -> list[Tensor]:
        """Features float32 [K, C] of the regions of each of M pictures, on the CPU.

        A picture's regions must be the same whenever it comes under its key.

        Raises:
            BadSample: a picture cannot be read.
        """
        known = {place: self._known[image.key] for place, image in enumerate(images) if image.key in self._known}
        fresh = [place for place in range(len(images)) if place not in known]
        tiles = [self._cut(images[place], regions[place]) for place in fresh]
        every = [tile for row in tiles for tile in row]
        seen = self._tiles(every).split([len(row) for row in tiles]) if every else ()
        found = dict(zip(fresh, seen, strict=True))
        for place, features in found.items():
            self._remember(images[place].key, features)
        return [found[place] if place in found else known[place].float() for place in range(len(images))]

    def _cut(self, image: Image, regions: Regions) -> list[Image]:
        picture = image.pil()
        tiles = [alone(picture, box, self.pixels.size) for box in regions.boxes.tolist()]
        return [Image(tile, key=hashlib.sha1(tile.picture.tobytes()).hexdigest()) for tile in tiles]

    def _remember(self, key: str | None, features: Tensor) -> None:
        half = features.half()
        if key is not None and self._bytes + half.nbytes <= self.limit:
            self._known[key] = half
            self._bytes += half.nbytes

    @torch.no_grad()
    def _encode(self, tiles: Sequence[Image]) -> Tensor:
        """Features [T, C] of tiles."""
        rows = []
        for start in range(0, len(tiles), _TOGETHER):
            part = tiles[start : start + _TOGETHER]
            arrays = np.stack([self.pixels.one(tile.pil()) for tile in part])
            states = self.encoder(torch.from_numpy(arrays).to(self.encoder.device)).last_hidden_state[:, 1:]
            patches = math.isqrt(states.shape[1])
            shares = torch.stack([under(tile.source.box, patches) for tile in part])  # type: ignore[union-attr]
            rows.append((shares.to(states)[:, None] @ states)[:, 0])
        return torch.cat(rows)
