"""Boxes of what stands out in a picture: a stand-in for a detector where a picture comes without ground truth.

A pixel stands out where its colour is far from the most common one; connected pixels of one hue (or, where they are
grey, of one of three shades) are a region. That finds the objects of drawn pictures exactly. On a photograph it finds
patches of colour; published features come from a trained detector instead, see `tessera.data.readers.detections`.

Legend: H, W height and width in pixels; K regions.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

LIMIT = 36  # regions of a picture, as LXMERT has
_DISTANCE = 50.0  # from the most common colour, of 442 that are possible
_GREY = 24.0  # most that the channels of a grey pixel differ
_HUES, _SHADES = 8, 3
_SMALLEST = 0.0004  # of the picture's area: 16 pixels of 400 x 100


def propose(picture: np.ndarray, limit: int = LIMIT) -> np.ndarray:
    """Boxes of a picture uint8 [H, W, 3], float32 [K, 4] as shares of its sides; the largest regions first.

    Where nothing stands out the whole picture is the one region.
    """
    height, width, _ = picture.shape
    kinds = _kinds(picture)
    found: list[tuple[float, tuple[int, int, int, int]]] = []
    for kind in range(_HUES + _SHADES):
        if not (kinds == kind).any():
            continue
        labels, _ = ndimage.label(kinds == kind)
        areas = np.bincount(labels.ravel())[1:]
        for area, place in zip(areas, ndimage.find_objects(labels), strict=True):
            if area >= max(_SMALLEST * height * width, 4):
                rows, columns = place
                found.append((-float(area), (columns.start, rows.start, columns.stop, rows.stop)))
    boxes = [box for _, box in sorted(found)[:limit]] or [(0, 0, width, height)]
    return np.array(boxes, np.float32) / np.array([width, height, width, height], np.float32)


def _kinds(picture: np.ndarray) -> np.ndarray:
    """int [H, W]: the hue or shade class of each pixel that stands out, -1 of the others."""
    coarse = ((picture[..., 0] >> 4).astype(np.int16) << 8) | ((picture[..., 1] >> 4) << 4) | (picture[..., 2] >> 4)
    common = picture[coarse == np.bincount(coarse.ravel()).argmax()].mean(axis=0)
    squares = ((picture - common.astype(np.float32)) ** 2).sum(axis=-1)
    kinds = np.full(picture.shape[:2], -1, np.int8)
    apart = squares > _DISTANCE**2
    kinds[apart] = _classes(picture[apart].astype(np.float32))
    return kinds


def _classes(colours: np.ndarray) -> np.ndarray:
    """Hue or shade class of colours [N, 3]."""
    red, green, blue = colours.T
    angle = np.arctan2(np.sqrt(3) * (green - blue), 2 * red - green - blue) / (2 * np.pi)
    # Borders of the classes lie between the six full colours, not on them.
    hue = np.floor((angle * _HUES + 0.5) % _HUES)
    shade = np.floor(colours.mean(axis=1) * _SHADES / 256)
    grey = colours.max(axis=1) - colours.min(axis=1) <= _GREY
    return np.where(grey, _HUES + shade, hue)
