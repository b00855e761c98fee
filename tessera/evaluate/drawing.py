"""What is seen of every pixel, as pictures of PIL to write down.

Legend: pictures of H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from colorsys import hsv_to_rgb

import numpy as np
from PIL import Image as PIL


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


def shares(labels: np.ndarray, classes: Sequence[str]) -> dict[str, float]:
    """The share of pixels of each class that is there, largest first."""
    places, counts = np.unique(labels, return_counts=True)
    return {classes[places[at]]: float(counts[at] / labels.size) for at in np.argsort(-counts, kind="stable")}
