"""Draw a Scene with anti-aliased analytic shapes, and give its exact masks, boxes and depth.

Shape legend: H = W = 64 pixels; K objects, back to front.
"""

from __future__ import annotations

import colorsys
from functools import cache

import numpy as np

from tessera.data.worlds.scenes.graph import SIZE, Scene, SceneObject

# Half the side, arm or span of each shape as a share of the object's radius, so that all six cover a similar
# area.
_SQUARE, _DIAMOND, _CROSS_ARM, _CROSS_HALF_WIDTH = 0.86, 1.16, 1.0, 0.36
_TRIANGLE = np.array([(0.0, -1.05), (1.02, 0.78), (-1.02, 0.78)])
_FAR = 1.0  # depth of the background


@cache
def _star() -> np.ndarray:
    angles = np.arange(10) * np.pi / 5 - np.pi / 2
    radii = np.where(np.arange(10) % 2 == 0, 1.15, 0.5)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _polygon_distance(x: np.ndarray, y: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Signed distance in pixels to a polygon, negative inside (exact, Quilez' even-odd formulation)."""
    ax, ay = (c[:, None, None] for c in corners.T)
    bx, by = (np.roll(c, -1)[:, None, None] for c in corners.T)
    ex, ey, px, py = bx - ax, by - ay, x - ax, y - ay
    along = np.clip((px * ex + py * ey) / (ex * ex + ey * ey), 0, 1)
    distance = np.sqrt((px - ex * along) ** 2 + (py - ey * along) ** 2).min(axis=0)
    crosses = ((ay > y) != (by > y)) & (x < ex * (y - ay) / np.where(ey == 0, 1, ey) + ax)
    return np.where(crosses.sum(axis=0) % 2 == 1, -distance, distance)


def outline(shape: str, r: float, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distance of points (x, y) [H, W], relative to the centre, to the outline of a shape of radius `r`.

    Negative inside, in the units of `r`.
    """
    match shape:
        case "circle":
            return np.hypot(x, y) - r
        case "square":
            return np.maximum(abs(x), abs(y)) - _SQUARE * r
        case "diamond":
            return (abs(x) + abs(y) - _DIAMOND * r) / np.sqrt(2)
        case "cross":
            arm, half = _CROSS_ARM * r, _CROSS_HALF_WIDTH * r
            return np.minimum(np.maximum(abs(x) - arm, abs(y) - half), np.maximum(abs(x) - half, abs(y) - arm))
        case "triangle":
            return _polygon_distance(x, y, _TRIANGLE * r)
        case _:
            return _polygon_distance(x, y, _star() * r)


def _shade(thing: SceneObject, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """How much of the object's darker shade shows, in [0, 1]: stripes along a diagonal, or a grid of dots."""
    if thing.texture == "striped":
        return np.clip(0.5 + 1.6 * np.sin((x + y) * (2 * np.pi / 5.6)), 0, 1)
    if thing.texture == "dotted":
        period = 4.6
        dx, dy = (np.abs((u / period) % 1 - 0.5) * period for u in (x, y))
        return np.clip(1.7 - np.hypot(dx, dy), 0, 1)
    return np.zeros_like(x)


def _window(thing: SceneObject) -> tuple[slice, slice, np.ndarray, np.ndarray]:
    """The pixels that an object can touch, and their centres relative to its own."""
    reach = 1.3 * thing.radius + 1
    x0, x1 = max(0, int(thing.x - reach)), min(SIZE, int(thing.x + reach) + 2)
    y0, y1 = max(0, int(thing.y - reach)), min(SIZE, int(thing.y + reach) + 2)
    y, x = np.mgrid[y0:y1, x0:x1] + 0.5
    return slice(y0, y1), slice(x0, x1), x - thing.x, y - thing.y


def _background(scene: Scene) -> np.ndarray:
    rng = np.random.default_rng(scene.seed)
    base = rng.uniform(0.78, 0.98) if scene.tone == "light" else rng.uniform(0.08, 0.3)
    tint = 1 - rng.uniform(0, 0.1, size=3)  # saturation stays at or below 0.1: never an object's colour
    field = np.full((SIZE, SIZE), base)
    if scene.background == "gradient":
        angle, span = rng.uniform(0, 2 * np.pi), 0.18
        y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE - 0.5
        field = field + span * (x * np.cos(angle) + y * np.sin(angle))
    elif scene.background == "speckled":
        field = field + rng.normal(0, 0.035, size=(SIZE, SIZE))
    elif scene.background == "checked":
        cell = int(rng.integers(4, 9))
        y, x = np.mgrid[0:SIZE, 0:SIZE] // cell
        field = field + 0.07 * ((x + y) % 2 - 0.5)
    return np.clip(field, 0.02, 1)[..., None] * tint


def _alpha(thing: SceneObject, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.clip(0.5 - outline(thing.shape, thing.radius, x, y), 0, 1)


def draw(scene: Scene) -> np.ndarray:
    """The picture, uint8 [H, W, 3]."""
    canvas = _background(scene)
    for thing in scene.objects:
        rows, columns, x, y = _window(thing)
        light = np.array(colorsys.hsv_to_rgb(thing.hue / 360 % 1, thing.saturation, thing.value))
        dark = np.array(colorsys.hsv_to_rgb(thing.hue / 360 % 1, thing.saturation, 0.55 * thing.value))
        paint = light + _shade(thing, x, y)[..., None] * (dark - light)
        alpha = _alpha(thing, x, y)[..., None]
        canvas[rows, columns] += alpha * (paint - canvas[rows, columns])
    return (canvas * 255 + 0.5).astype(np.uint8)


def object_masks(scene: Scene) -> np.ndarray:
    """Visible pixels of each object, bool [K, H, W]: what a nearer object covers is not part of it."""
    masks = np.zeros((len(scene.objects), SIZE, SIZE), dtype=bool)
    for index, thing in enumerate(scene.objects):
        rows, columns, x, y = _window(thing)
        covered = _alpha(thing, x, y) >= 0.5
        masks[:, rows, columns] &= ~covered
        masks[index, rows, columns] = covered
    return masks


def object_boxes(scene: Scene) -> np.ndarray:
    """Boxes around the visible pixels of each object, float32 [K, 4] as x0, y0, x1, y1 in pixels."""
    boxes = np.zeros((len(scene.objects), 4), dtype=np.float32)
    for index, mask in enumerate(object_masks(scene)):
        y, x = np.nonzero(mask)
        boxes[index] = (x.min(), y.min(), x.max() + 1, y.max() + 1)
    return boxes


def depth(scene: Scene) -> np.ndarray:
    """Distance from the viewer, float32 [H, W] in (0, 1]: 1 is the background, the front object nearest."""
    field = np.full((SIZE, SIZE), _FAR, dtype=np.float32)
    for index, mask in enumerate(object_masks(scene)):
        field[mask] = 1 - (index + 1) / (len(scene.objects) + 1)
    return field
