"""The six shapes as the scene reader knows them: outlines of its own, rasterised by counting sub-pixels.

Nothing here comes from the code that draws scenes, so that a fault there cannot hide itself in the reader.
Shape legend: P = PATCH pixels a side; Q = POOLED = 15 blocks of 2 x 2 pixels a side; T templates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np

PATCH = 29  # pixels; the widest object spans 23.2 and its centre may lie 2 off the middle
POOLED = (PATCH + 1) // 2
_FINE = 4  # sub-pixels a side
_ROOM = 4  # pixels by which a stored raster is larger than a patch on each side, so that it can be shifted
_SMALLEST, _STEP, _STEPS = 5.4, 0.2, 29  # radii in pixels: 5.4, 5.6, ... 11.0
_COARSE_RADII = np.arange(0, _STEPS, 4)
_COARSE_SHIFTS = np.arange(-2, 3)  # pixels


def _ring(*corners: tuple[float, float]) -> np.ndarray:
    return np.array(corners)


def _star() -> np.ndarray:
    angle = np.pi * np.arange(10) / 5
    length = np.tile([1.15, 0.5], 5)
    return np.stack([length * np.sin(angle), -length * np.cos(angle)], axis=1)


# Corners for radius 1, y pointing down; the circle needs none.
_CORNERS = {
    "square": _ring((-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)),
    "triangle": _ring((0, -1.05), (1.02, 0.78), (-1.02, 0.78)),
    "diamond": _ring((0, -1.16), (1.16, 0), (0, 1.16), (-1.16, 0)),
    "star": _star(),
    "cross": _ring(
        (-0.36, -1), (0.36, -1), (0.36, -0.36), (1, -0.36), (1, 0.36), (0.36, 0.36),
        (0.36, 1), (-0.36, 1), (-0.36, 0.36), (-1, 0.36), (-1, -0.36), (-0.36, -0.36),
    ),
}  # fmt: skip
SHAPES = ("circle", *_CORNERS)


def _inside(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Which points lie in the shape of radius 1, by the even-odd rule."""
    if shape == "circle":
        return x * x + y * y <= 1
    corners = _CORNERS[shape]
    odd = np.zeros(np.broadcast(x, y).shape, dtype=bool)
    for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if ay != by:
            odd ^= ((ay > y) != (by > y)) & (x < ax + (bx - ax) * (y - ay) / (by - ay))
    return odd


# Length of the outline for radius 1.
PERIMETERS = np.array(
    [2 * np.pi] + [float(np.hypot(*(ring - np.roll(ring, -1, axis=0)).T).sum()) for ring in _CORNERS.values()]
)


def coverage(shape: str, radius: float, x: float = 0.0, y: float = 0.0, pixels: int = PATCH) -> np.ndarray:
    """Share of each pixel that the shape covers, float32 [pixels, pixels]; (x, y) is its centre."""
    ticks = (np.arange(pixels * _FINE) + 0.5) / _FINE - pixels / 2
    inside = _inside(shape, (ticks[None, :] - x) / radius, (ticks[:, None] - y) / radius)
    return inside.reshape(pixels, _FINE, pixels, _FINE).mean(axis=(1, 3), dtype=np.float32)


def pool(patches: np.ndarray) -> np.ndarray:
    """Means over 2 x 2 pixels: [N, P * P] to [N, Q * Q]."""
    number = len(patches)
    even = np.zeros((number, 2 * POOLED, 2 * POOLED), dtype=np.float32)
    even[:, :PATCH, :PATCH] = patches.reshape(number, PATCH, PATCH)
    rows = even[:, 0::2] + even[:, 1::2]
    return ((rows[..., 0::2] + rows[..., 1::2]) / 4).reshape(number, POOLED * POOLED)


@dataclass(frozen=True)
class Templates:
    """Rasterised shapes, each with what made it; T stands for any leading sizes.

    `soft` is float32 [T, P * P] (pooled: [T, Q * Q]): twice the coverage and at most 1, so that an edge pixel
    counts as full from half covered on. `shape` int [T] indexes SHAPES, `step` int [T] the radii, `x` and `y`
    float [T] are the centre off the patch's middle in pixels.
    """

    soft: np.ndarray
    shape: np.ndarray
    step: np.ndarray
    x: np.ndarray
    y: np.ndarray

    @property
    def radius(self) -> np.ndarray:
        """Radii in pixels, float [T]."""
        return _SMALLEST + _STEP * self.step


@cache
def _windows() -> np.ndarray:
    """All rasters under every whole-pixel shift: [shape, step, half x, half y, shift y, shift x, P, P].

    `half x` and `half y` say whether the centre lies half a pixel further right and down.
    """
    size = PATCH + 2 * _ROOM
    rasters = [
        np.minimum(1, 2 * coverage(shape, _SMALLEST + _STEP * step, x, y, size))
        for shape in SHAPES
        for step in range(_STEPS)
        for x in (0, 0.5)
        for y in (0, 0.5)
    ]
    stored = np.array(rasters).reshape(len(SHAPES), _STEPS, 2, 2, size, size)
    return np.lib.stride_tricks.sliding_window_view(stored, (PATCH, PATCH), axis=(4, 5))


def _gather(shape: np.ndarray, step: np.ndarray, x: np.ndarray, y: np.ndarray) -> Templates:
    left, up = np.floor(x).astype(int), np.floor(y).astype(int)
    half_x, half_y = (x > left).astype(int), (y > up).astype(int)
    soft = _windows()[shape, step, half_x, half_y, _ROOM - up, _ROOM - left]
    return Templates(soft.reshape(*shape.shape, -1), shape, step, x, y)


@cache
def coarse_templates() -> Templates:
    """Every shape at eight radii and whole-pixel shifts up to 2, pooled; shapes in runs of equal length."""
    grid = np.meshgrid(np.arange(len(SHAPES)), _COARSE_RADII, _COARSE_SHIFTS, _COARSE_SHIFTS, indexing="ij")
    full = _gather(*(axis.ravel() for axis in grid))
    return replace(full, soft=pool(full.soft))


@cache
def _around(reach: int) -> tuple[np.ndarray, ...]:
    """Steps of radius, and shifts in pixels, of the 27 templates `reach` half-pixels around one."""
    near = np.arange(-1, 2) * reach
    grid = np.meshgrid(near, near / 2, near / 2, indexing="ij")
    return tuple(axis.ravel() for axis in grid)


def nearby(templates: Templates, chosen: np.ndarray, reach: int) -> Templates:
    """The 27 templates around each chosen one, up to 0.2 x `reach` in radius and `reach` / 2 in centre.

    Args:
        templates: one bank [T] for all rows of `chosen`, or one a row [K, T].
        chosen: indices [K, n] into the bank.

    Returns:
        Templates [K, n * 27], in runs of 27 around each chosen one.
    """
    step, x, y = _around(reach)

    def spread(values: np.ndarray, around: np.ndarray, low: float, high: float) -> np.ndarray:
        picked = values[chosen] if values.ndim == 1 else np.take_along_axis(values, chosen, axis=1)
        return np.clip(picked[..., None] + around, low, high).reshape(len(chosen), -1)

    return _gather(
        spread(templates.shape, np.zeros_like(step), 0, len(SHAPES)),
        spread(templates.step, step, 0, _STEPS - 1),
        spread(templates.x, x, -_ROOM, _ROOM),
        spread(templates.y, y, -_ROOM, _ROOM),
    )
