"""Pictures of a table: from above, and from the gripper's own camera. Anti-aliased, from exact outlines.

Shape legend: P pixels a side of a picture.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from tessera.data.worlds.scenes.draw import outline
from tessera.data.worlds.tabletop.table import (
    BUTTON,
    LAMP,
    LEVEL,
    RADIUS,
    RAIL,
    RAIL_Y,
    TRAY_HALF,
    TRAYS,
    Table,
    Thing,
)

STATIC, HAND = 64, 32  # pixels a side of the two cameras
_TILT = 0.08  # how far up the picture a height of 1 shows: the camera stands a little before the table
_GROW = 0.15  # how much larger a height of 1 looks
_BLACK, _WHITE, _STEEL, _DARK, _GREEN, _GLOW, _OUT = np.array(
    [(0, 0, 0), (0.97, 0.96, 0.93), (0.22, 0.23, 0.27), (0.42, 0.4, 0.38), (0.2, 0.55, 0.3), (1, 0.88, 0.25),
     (0.5, 0.5, 0.52)], np.float32,
)  # fmt: skip


@dataclass
class _View:
    """A square of the table, with its middle at (x, y), that is `side` wide, on a canvas float [P, P, 3]."""

    canvas: np.ndarray
    x: float
    y: float
    side: float
    tilt: float

    def paint(self, shape: str, at: tuple[float, float], size: tuple[float, float], colour: np.ndarray, **how: float):
        """A shape, or a "box" of half sides `size`, at height `z`, grown by `blur` with soft edges, `opacity` thick."""
        z, blur, opacity = how.get("z", 0.0), how.get("blur", 0.0), how.get("opacity", 1.0)
        pixels = len(self.canvas)
        scale, grow = pixels / self.side, 1 + _GROW * z * (self.tilt > 0)
        cx = (at[0] - self.x) * scale + pixels / 2
        cy = (at[1] - self.tilt * z - self.y) * scale + pixels / 2
        width, height = (scale * grow * one for one in size)
        soft = max(1.0, blur * scale)
        reach = 1.3 * max(width, height) + soft
        x0, x1 = max(0, int(cx - reach)), min(pixels, int(cx + reach) + 2)
        y0, y1 = max(0, int(cy - reach)), min(pixels, int(cy + reach) + 2)
        if x0 >= x1 or y0 >= y1:
            return
        x = np.arange(x0, x1, dtype=np.float32) + np.float32(0.5 - cx)
        y = np.arange(y0, y1, dtype=np.float32)[:, None] + np.float32(0.5 - cy)
        distance = np.maximum(abs(x) - width, abs(y) - height) if shape == "box" else outline(shape, width, x, y)
        alpha = opacity * np.minimum(np.maximum(0.5 - distance / soft, 0), 1)[..., None]
        window = self.canvas[y0:y1, x0:x1]
        window += alpha * (colour - window)


def static_view(table: Table, pixels: int = STATIC) -> np.ndarray:
    """The whole table from above, a little from the front, so that heights show; uint8 [P, P, 3]."""
    return _draw(table, pixels, 0.5, 0.5, 1.0, _TILT)


def hand_view(table: Table, pixels: int = HAND) -> np.ndarray:
    """Straight down from the gripper, wider the higher it is; uint8 [P, P, 3]."""
    return _draw(table, pixels, table.x, table.y, 0.3 + 0.2 * table.z, 0.0)


def _draw(table: Table, pixels: int, x: float, y: float, side: float, tilt: float) -> np.ndarray:
    canvas = np.empty((pixels, pixels, 3), np.float32)
    view = _View(canvas, x, y, side, tilt)
    if tilt:  # this camera stands still, and so does what it sees of the furniture
        canvas[:] = _room(pixels, table.tint)
    else:
        _furniture(view, table.tint)
    _moving(view, table)
    return (np.clip(canvas, 0, 1) * 255 + 0.5).astype(np.uint8)


@lru_cache(maxsize=16)
def _room(pixels: int, tint: tuple[float, float, float]) -> np.ndarray:
    view = _View(np.empty((pixels, pixels, 3), np.float32), 0.5, 0.5, 1.0, _TILT)
    _furniture(view, tint)
    return view.canvas


def _furniture(view: _View, colour: tuple[float, float, float]) -> None:
    """The table, its trays, the slider's rail and the button."""
    tint = np.array(colour, np.float32)
    view.canvas[:] = _DARK
    view.paint("box", (0.5, 0.5), (0.5, 0.5), tint)
    for place in TRAYS.values():
        view.paint("box", place, (TRAY_HALF, TRAY_HALF), tint * 0.66)
        view.paint("box", place, (TRAY_HALF - 0.02, TRAY_HALF - 0.02), tint * 1.08)
    middle = (RAIL[0] + RAIL[1]) / 2
    view.paint("box", (middle, RAIL_Y), ((RAIL[1] - RAIL[0]) / 2 + 0.05, 0.018), tint * 0.45)
    view.paint("circle", BUTTON, (0.055, 0.055), tint * 0.45)
    view.paint("circle", BUTTON, (0.035, 0.035), _GREEN)
    view.paint("circle", LAMP, (0.06, 0.06), tint * 0.3)


def _moving(view: _View, table: Table) -> None:
    """What moves or shines."""
    view.paint("box", (table.knob_x, RAIL_Y), (0.036, 0.055), _STEEL)
    view.paint("box", (table.knob_x, RAIL_Y), (0.022, 0.041), _WHITE)
    if table.lamp:
        view.paint("circle", LAMP, (0.1, 0.1), _GLOW, blur=0.09, opacity=0.6)
    view.paint("circle", LAMP, (0.045, 0.045), _GLOW if table.lamp else _OUT)
    for index in sorted(range(len(table.things)), key=table.level):
        if index != table.held:
            _thing(view, table.things[index], LEVEL * table.level(index))
    _gripper(view, table)


def _thing(view: _View, thing: Thing, z: float) -> None:
    at, size = (thing.x, thing.y), (RADIUS, RADIUS)
    view.paint(thing.shape, (thing.x, thing.y + 0.012), size, _BLACK, z=max(0.0, z - LEVEL), opacity=0.3)
    light = np.array(colorsys.hsv_to_rgb(thing.hue / 360 % 1, 0.9, 0.95), np.float32)
    view.paint(thing.shape, at, size, 0.55 * light, z=z)
    view.paint(thing.shape, at, (0.82 * RADIUS, 0.82 * RADIUS), light, z=z)


def _gripper(view: _View, table: Table) -> None:
    """Its shadow on the table, what it holds, and two fingers on a bar."""
    at, z = (table.x, table.y), table.z
    view.paint("circle", at, (0.05, 0.05), _BLACK, blur=0.05, opacity=0.35)
    if table.held is not None:
        _thing(view, table.things[table.held], z)
    apart = 0.115 if table.opened else RADIUS + 0.012 if table.held is not None else 0.026
    view.paint("box", (table.x, table.y - 0.055), (apart + 0.014, 0.014), _STEEL, z=z)
    for sign in (-1, 1):
        view.paint("box", (table.x + sign * apart, table.y), (0.014, 0.055), _STEEL, z=z)
        view.paint("box", (table.x + sign * apart, table.y + 0.04), (0.014, 0.015), _WHITE, z=z)
