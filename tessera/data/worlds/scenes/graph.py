"""The exact content of a `scenes` picture: which objects, where, in front of what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

SIZE = 64  # pixels, both sides
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross")
SIZES = ("small", "large")
TEXTURES = ("plain", "striped", "dotted")
PLACES = (
    "top left", "top", "top right",
    "left", "center", "right",
    "bottom left", "bottom", "bottom right",
)  # fmt: skip
BACKGROUNDS = ("plain", "gradient", "speckled", "checked")
TONES = ("light", "dark")

HUES = dict(zip(COLOURS, (0.0, 30.0, 56.0, 125.0, 183.0, 228.0, 275.0, 325.0), strict=True))  # degrees
RADII = {"small": (6.4, 7.2), "large": (9.2, 10.0)}  # pixels; a cell of the 3 x 3 grid is 21.3 wide
JITTER = 1.8  # pixels that a centre may lie off the middle of its cell, each way

Split = Literal["train", "heldout"]


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One object. `x`, `y`, `radius` are pixels; `hue` is degrees; `value` and `saturation` lie in [0, 1]."""

    colour: str
    shape: str
    size: str
    texture: str
    place: str
    x: float
    y: float
    radius: float
    hue: float
    saturation: float
    value: float

    @property
    def triple(self) -> tuple[str, str, str]:
        """Colour, shape and place: the combination that splits are made of."""
        return self.colour, self.shape, self.place

    @property
    def row(self) -> int:
        """0 top, 1 middle, 2 bottom."""
        return PLACES.index(self.place) // 3

    @property
    def column(self) -> int:
        """0 left, 1 middle, 2 right."""
        return PLACES.index(self.place) % 3


@dataclass(frozen=True, slots=True)
class Scene:
    """Objects from back to front, before a background whose grain is drawn from `seed`."""

    objects: tuple[SceneObject, ...]
    background: str
    tone: str
    seed: int

    def reading_order(self) -> tuple[SceneObject, ...]:
        """Objects by row, then by column: the order of canonical captions."""
        return tuple(sorted(self.objects, key=lambda thing: PLACES.index(thing.place)))


def is_heldout(colour: str, shape: str, place: str) -> bool:
    """Whether this combination is kept out of training.

    One triple in eleven, spread so that every colour, shape, place and every pair of two of them stays in
    training.
    """
    code = 3 * COLOURS.index(colour) + 5 * SHAPES.index(shape) + PLACES.index(place)
    return code % 11 == 0


def _pick(rng: np.random.Generator, names: tuple[str, ...]) -> str:
    return names[int(rng.integers(len(names)))]


def place_object(
    rng: np.random.Generator, colour: str, shape: str, place: str, size: str = "", texture: str = ""
) -> SceneObject:
    """A new object, a little off the middle of its place; of any size and texture where none is said."""
    size, texture = size or _pick(rng, SIZES), texture or _pick(rng, TEXTURES)
    cell = PLACES.index(place)
    dx, dy = rng.uniform(-JITTER, JITTER, size=2).tolist()
    return SceneObject(
        colour, shape, size, texture, place,
        x=(cell % 3 + 0.5) * SIZE / 3 + dx,
        y=(cell // 3 + 0.5) * SIZE / 3 + dy,
        radius=rng.uniform(*RADII[size]),
        hue=HUES[colour] + rng.uniform(-5, 5),
        saturation=rng.uniform(0.8, 1.0),
        value=rng.uniform(0.85, 1.0),
    )  # fmt: skip


def random_scene(
    rng: np.random.Generator, split: Split = "train", counts: tuple[float, ...] = (0.3, 0.3, 0.2, 0.2)
) -> Scene:
    """A scene of one split: all its triples are of that split, and no two objects share a place.

    Args:
        counts: chances of 1, 2, ... objects; they sum to 1.
    """
    number = 1 + min(int(np.searchsorted(np.cumsum(counts), rng.random())), len(counts) - 1)
    objects = []
    for cell in rng.permutation(len(PLACES))[:number]:
        place = PLACES[cell]
        while True:
            colour, shape = _pick(rng, COLOURS), _pick(rng, SHAPES)
            if is_heldout(colour, shape, place) == (split == "heldout"):
                break
        objects.append(place_object(rng, colour, shape, place))
    return scene_of(tuple(objects), rng)


def scene_of(objects: tuple[SceneObject, ...], rng: np.random.Generator) -> Scene:
    """These objects before any background."""
    return Scene(objects, _pick(rng, BACKGROUNDS), _pick(rng, TONES), seed=int(rng.integers(2**31)))


def redrawn(scene: Scene, rng: np.random.Generator, keep: tuple[str, ...] = ("size", "texture")) -> Scene:
    """Another picture of the same colours, shapes and places; of the rest, what `keep` names stays too."""
    objects = []
    for thing in scene.objects:
        while True:
            other = place_object(rng, thing.colour, thing.shape, thing.place)
            if all(getattr(other, name) == getattr(thing, name) for name in keep):
                break
        objects.append(other)
    return scene_of(tuple(objects), rng)
