"""Pictures of any shape: cut into tiles of the encoder's size, with the whole picture small before them.

As LLaVA-NeXT chooses its grid; every tile costs as many tokens as a picture, its padding included, and no mark stands
between rows. Legend: S pixels a side of a tile, t = 1 + tiles of a picture, or 1 where it needs none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from PIL import Image as PIL

from tessera.data.images import Pixels, normalise, to_array
from tessera.data.sample import Image
from tessera.errors import UserError


@dataclass(frozen=True)
class TiledPixels(Pixels):
    """As `Pixels`, but a picture becomes t of them.

    Args:
        most: tiles at most, beside the whole picture.
    """

    most: int = 4

    def __post_init__(self) -> None:
        if self.most < 1:
            raise UserError(f"most is {self.most} tiles; it is at least 1")
        if self.augment is not None:
            raise UserError("a picture that is tiled cannot be augmented: its shape says how many tokens it takes")

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """Rows and columns of the tiles that show a picture of width x height pixels largest and, of those, waste least
        of their own pixels."""
        grids = [(rows, cols) for rows in range(1, self.most + 1) for cols in range(1, self.most // rows + 1)]
        return max(grids, key=lambda grid: self._worth(grid, width, height))

    def _worth(self, grid: tuple[int, int], width: int, height: int) -> tuple[int, int]:
        tall, wide = grid[0] * self.size, grid[1] * self.size
        scale = min(wide / width, tall / height)
        shown = min(int(width * scale) * int(height * scale), width * height)
        return shown, shown - tall * wide

    def count(self, image: PIL.Image) -> int:
        """t."""
        rows, cols = self.grid(*image.size)
        return 1 if rows * cols == 1 else 1 + rows * cols

    def several(self, image: PIL.Image, rng: np.random.Generator | None = None) -> list[np.ndarray]:
        """The whole picture brought to a square, then its tiles row by row, each float32 [3, S, S]."""
        rows, cols = self.grid(*image.size)
        parts = [image.resize((self.size, self.size), PIL.Resampling.BICUBIC)]
        if rows * cols > 1:
            sheet = _fitted(image, cols * self.size, rows * self.size)
            corners = [(col * self.size, row * self.size) for row in range(rows) for col in range(cols)]
            parts += [sheet.crop((x, y, x + self.size, y + self.size)) for x, y in corners]
        return [normalise(to_array(part), self.mean, self.std) for part in parts]

    def places(self, image: Image, each: int) -> int:
        """Placeholders of a picture whose tiles take `each`. The picture is opened for its size.

        Raises:
            BadSample: it cannot be.
        """
        return self.count(image.pil()) * each


def places(pixels: Pixels, each: int) -> int | Callable[[Image], int]:
    """Placeholders of a picture that enters so, where an encoder's view takes `each`: their number, or a function of
    the picture where its shape decides."""
    return partial(pixels.places, each=each) if isinstance(pixels, TiledPixels) else each


@dataclass(frozen=True)
class SheetPixels(Pixels):
    """As LLaVA-NeXT cuts a picture, by transformers' own image processor: the whole brought to a square, then the tiles
    of the sheet that suits its shape.

    Args:
        pinpoints: height and width in pixels of each sheet.
    """

    pinpoints: tuple[tuple[int, int], ...] = ()

    def processor(self) -> Any:
        """That of transformers, `LlavaNextImageProcessor`."""
        from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

        return LlavaNextImageProcessorPil(
            size={"shortest_edge": self.size}, crop_size={"height": self.size, "width": self.size},
            image_mean=list(self.mean), image_std=list(self.std), do_pad=False,
            image_grid_pinpoints=[list(one) for one in self.pinpoints],
        )  # fmt: skip

    def several(self, image: PIL.Image, rng: np.random.Generator | None = None) -> list[np.ndarray]:
        """The whole picture, then its tiles row by row, each float32 [3, S, S]."""
        return list(self.processor()(image, return_tensors="np")["pixel_values"][0].astype(np.float32))


def _fitted(image: PIL.Image, width: int, height: int) -> PIL.Image:
    """The picture as large as it fits, in the middle of a black sheet."""
    scale = min(width / image.width, height / image.height)
    size = min(width, max(1, round(image.width * scale))), min(height, max(1, round(image.height * scale)))
    sheet = PIL.new("RGB", (width, height))
    sheet.paste(image.resize(size, PIL.Resampling.BICUBIC), ((width - size[0]) // 2, (height - size[1]) // 2))
    return sheet
