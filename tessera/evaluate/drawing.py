"""What is seen of every pixel, as pictures of PIL to write down.

Legend: pictures of H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from colorsys import hsv_to_rgb

import numpy as np
from PIL import Image as PIL
from PIL import ImageOps

COLUMNS = 8  # pictures in a row of a sheet
SIDE = 128  # pixels of a picture on a sheet
_GAP = 4


def labels_png(labels: np.ndarray) -> PIL.Image:
    """Classes int [H, W], below 256, as entries of a palette: class 0 is black, neighbours differ in hue and value."""
    picture = PIL.fromarray(labels.astype(np.uint8))
    colours = [hsv_to_rgb(0.618 * place % 1, 0.75, 0.95 - 0.2 * (place % 3)) for place in range(1, 256)]
    picture.putpalette([0, 0, 0, *(round(255 * part) for colour in colours for part in colour)])
    return picture


def mask_png(mask: np.ndarray) -> PIL.Image:
    """A mask bool [H, W]: 255 where it is true."""
    return PIL.fromarray(mask.astype(np.uint8) * 255)


def depth_png(depth: np.ndarray) -> PIL.Image:
    """Depth float [H, W] in thousandths, 16 bits: millimetres of metres, as NYUv2 has it."""
    return PIL.fromarray((depth * 1000).round().clip(0, 65535).astype(np.uint16))


def to_look_at(picture: PIL.Image) -> PIL.Image:
    """What `labels_png`, `mask_png` or `depth_png` gave, as colours or greys; of depth, what is nearest is white."""
    if not picture.mode.startswith("I"):
        return picture.convert("RGB")
    depth = np.asarray(picture).astype(np.float32)
    reach = max(float(np.ptp(depth)), 1.0)
    return PIL.fromarray((255 * (depth.max() - depth) / reach).round().astype(np.uint8)).convert("RGB")


def sheet(pictures: Sequence[PIL.Image], columns: int = COLUMNS) -> PIL.Image:
    """Pictures in rows, each fitted into a square of SIDE pixels; rows are as high as the highest of them."""
    columns = min(columns, len(pictures))
    small = [ImageOps.contain(picture, (SIDE, SIDE), PIL.Resampling.NEAREST) for picture in pictures]
    rows, right, down = -(-len(small) // columns), SIDE + _GAP, max(one.height for one in small) + _GAP
    page = PIL.new("RGB", (columns * right - _GAP, rows * down - _GAP), "white")
    for place, one in enumerate(small):
        page.paste(one, ((place % columns) * right, (place // columns) * down))
    return page


def film_row(frames: np.ndarray | Sequence[np.ndarray]) -> list[PIL.Image]:
    """A row of a sheet from a film's frames uint8 [H, W, 3]: its first, its last and what lies between, evenly."""
    places = np.linspace(0, len(frames) - 1, COLUMNS).round().astype(int)
    return [PIL.fromarray(frames[place]) for place in places]


def shares(labels: np.ndarray, classes: Sequence[str]) -> dict[str, float]:
    """The share of pixels of each class that is there, largest first."""
    places, counts = np.unique(labels, return_counts=True)
    return {classes[places[at]]: float(counts[at] / labels.size) for at in np.argsort(-counts, kind="stable")}
