"""Features of pictures by frozen encoders, computed once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tessera.data.sample import Image

Encode = Callable[[Sequence[Image]], Tensor | Sequence[Tensor]]
AT_ONCE = 256  # pictures; what an encoder keeps of thousands on its way would be gigabytes


class FeatureStore:
    """What a frozen encoder says of pictures, remembered by their keys.

    Features pass through `dtype` whether they are remembered or new, so that a run does not depend on what is in the
    store. Pictures without a key are encoded each time.

    Args:
        encode: M pictures -> features [M, ...], one row a picture, or M rows of different shapes; without gradient.
        limit: bytes to remember at most; past it, new pictures are encoded each time.
    """

    def __init__(self, encode: Encode, *, limit: int = 2**30, dtype: torch.dtype = torch.float16):
        self.encode, self.limit, self.dtype = encode, limit, dtype
        self._rows: dict[str, Tensor] = {}
        self._bytes = 0

    def __call__(self, images: Sequence[Image]) -> Tensor:
        """Features float32 [M, ...] of M >= 1 pictures, on the CPU."""
        return torch.stack(self.each(images))

    @torch.no_grad()
    def each(self, images: Sequence[Image]) -> list[Tensor]:
        """The same as M rows."""
        known = {image.key: self._rows[image.key] for image in images if image.key in self._rows}
        fresh = [image for image in images if image.key not in known]
        unique = list({image.key or id(image): image for image in fresh}.values())
        rows: dict[str | int, Tensor] = {}
        for first in range(0, len(unique), AT_ONCE):
            part = unique[first : first + AT_ONCE]
            encoded = self.encode(part)
            kept = encoded.to("cpu", self.dtype) if isinstance(encoded, Tensor) else [
                row.to("cpu", self.dtype) for row in encoded
            ]  # fmt: skip
            rows.update((image.key or id(image), row) for image, row in zip(part, kept, strict=True))
        self._remember({key: row for key, row in rows.items() if isinstance(key, str)})
        found = [known[image.key] if image.key in known else rows[image.key or id(image)] for image in images]
        return [row.float() for row in found]  # CPU autocast stacks no float16

    def last(self, images: Sequence[Image]) -> Tensor:
        """The same for the last time: what is remembered of these pictures goes."""
        found = self(images)
        for image in images:
            if image.key in self._rows:
                self._bytes -= self._rows.pop(image.key).nbytes
        return found

    def _remember(self, rows: dict[str, Tensor]) -> None:
        for key, row in rows.items():
            if self._bytes + row.nbytes > self.limit:
                return
            self._rows[key] = row.clone()
            self._bytes += row.nbytes
