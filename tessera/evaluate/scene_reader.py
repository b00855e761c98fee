"""Read a `scenes` picture back into objects by classical image analysis: no trained model has a say.

Steps: hue classes of the saturated pixels, connected components, one patch a component (one a grid cell where
several objects of a hue touch), and the best overlap with a bank of shapes, coarse then fine. A shape counts
only where the overlap is high and the edge is sharp: a soft blob is read as "unknown".

Shape legend: H = W = 64 pixels; K candidate objects; P = 29 pixels, the side of a patch; B = 122, the side of
a picture with a border of P on each side; T templates.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import ndimage

from tessera.data.worlds.scenes.graph import COLOURS, HUES, PLACES, SIZE, TEXTURES
from tessera.errors import UserError
from tessera.evaluate.shape_templates import (
    PATCH,
    PERIMETERS,
    SHAPES,
    Templates,
    coarse_templates,
    nearby,
    pool,
)

UNKNOWN = "unknown"
MIN_OVERLAP = 0.86  # a shape that fits less is "unknown"; true pictures lie at 0.92 and above
MIN_MARGIN = 0.015  # by how much the best shape must beat the second; in true pictures by 0.05
MAX_SOFTNESS = 1.4  # half-tone pixels a pixel of outline; true pictures have up to 1.1, blurred by 2 pixels 2.2
_MIN_CHROMA = 50.0  # of 255, against the background: the darkest object has 95, the brightest background 25
_MIN_PIXELS, _MIN_CORE = 18, 4  # smaller specks, and lines where two objects blend, are no objects
_WIDEST = 24.5  # pixels; a component wider or higher than any object is several that touch
_CELL = SIZE / 3  # pixels
_CORE = 4  # pixels; half of the middle part of a cell, which every object in the cell covers
_HALF = PATCH // 2
_SIZE_BORDER = 8.2  # radius in pixels between small and large
_DARK = 0.85  # of the brightness of most pixels inside; what is below is the dark part of a texture
_PLAIN_SHARE = 0.055  # of dark pixels; plain objects have at most 0.05, dotted ones at least 0.07
_STRIPED_SHARE = 0.7  # of the variance of brightness inside that lies between diagonals
_OUTSIDE, _BACKGROUND = -2, -1  # classes of pixels that are no object's


@dataclass(frozen=True, slots=True)
class ReadObject:
    """One object as read. `shape` is "unknown" where no outline fits; `box` is x0, y0, x1, y1 in pixels.

    `overlap` in [0, 1] is how well the best outline fits (soft intersection over union), `margin` by how
    much it beats the second-best shape, `softness` how many half-tone pixels lie along a pixel of the
    outline. `x`, `y`, `radius` are pixels.
    """

    colour: str
    shape: str
    place: str
    size: str
    texture: str
    box: tuple[int, int, int, int]
    x: float
    y: float
    radius: float
    overlap: float
    margin: float
    softness: float


@dataclass(frozen=True)
class _Layers:
    """A picture taken apart, with a border of P on each side: chroma against the background as a vector float
    [B, B, 2] and its length [B, B]; brightness [B, B]; colour class int [B, B]."""

    vector: np.ndarray
    chroma: np.ndarray
    brightness: np.ndarray
    colour: np.ndarray


@dataclass(frozen=True)
class _Candidate:
    """Pixels that may be one object: colour class, mask [B, B], the patch, and whether it is one of several
    cells that the component was cut into."""

    colour: int
    mask: np.ndarray
    patch: tuple[slice, slice]
    split: bool


@dataclass(frozen=True)
class _Evidence:
    """What a candidate's patch shows, float32 [P * P] each: how strongly each pixel has the object's colour
    (1 is full, a texture's dark parts about 0.55), and whether the pixel counts."""

    strength: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True)
class _Fit:
    shape: int
    radius: float
    x: float  # off the patch's middle, as y
    y: float
    overlap: float
    margin: float
    softness: float
    outline: np.ndarray  # bool [P, P]


@cache
def _hue_edges() -> tuple[np.ndarray, np.ndarray]:
    """Upper borders of the hue classes in degrees, and the class below each; the last wraps round to 0."""
    hues = np.array([HUES[name] for name in COLOURS])
    order = np.argsort(hues)
    following = np.append(hues[order][1:], hues[order][0] + 360)
    return (hues[order] + following) / 2, np.append(order, order[0])


def _bordered(field: np.ndarray, fill: float = 0) -> np.ndarray:
    wide = np.full((SIZE + 2 * PATCH, SIZE + 2 * PATCH, *field.shape[2:]), fill, dtype=field.dtype)
    wide[PATCH:-PATCH, PATCH:-PATCH] = field
    return wide


def _separate(picture: np.ndarray) -> _Layers:
    red, green, blue = np.moveaxis(picture.astype(np.float32), -1, 0)
    brightness = np.maximum(np.maximum(red, green), blue)
    plane = np.stack([red - (green + blue) / 2, np.float32(np.sqrt(0.75)) * (green - blue)], axis=-1)
    grey = brightness - np.minimum(np.minimum(red, green), blue) < _MIN_CHROMA
    behind = plane[::2, ::2][grey[::2, ::2]]
    vector = plane - (np.median(behind, axis=0) if len(behind) else 0)
    chroma = np.sqrt(vector[..., 0] ** 2 + vector[..., 1] ** 2)
    coloured = chroma > _MIN_CHROMA
    strong = plane[coloured]
    hue = np.degrees(np.arctan2(strong[:, 1], strong[:, 0])) % 360
    edges, classes = _hue_edges()
    colour = np.full((SIZE, SIZE), _BACKGROUND)
    colour[coloured] = classes[np.searchsorted(edges, hue)]
    return _Layers(_bordered(vector), _bordered(chroma), _bordered(brightness), _bordered(colour, _OUTSIDE))


def _core(mask: np.ndarray) -> np.ndarray:
    """Pixels whose four neighbours are in the mask too."""
    core = np.zeros_like(mask)
    core[1:-1, 1:-1] = mask[1:-1, 1:-1] & mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    return core


def _candidates(colour: np.ndarray) -> list[_Candidate]:
    found = []
    inner = colour[PATCH:-PATCH, PATCH:-PATCH]
    for index, window in enumerate(ndimage.find_objects(inner + 1, max_label=len(COLOURS))):
        if window is None:
            continue
        here = inner[window] == index
        framed = np.zeros((here.shape[0] + 2, here.shape[1] + 2), dtype=bool)
        framed[1:-1, 1:-1] = here
        labels, _ = ndimage.label(framed)
        sizes = np.bincount(labels.ravel())
        cores = np.bincount(labels[_core(labels > 0)], minlength=len(sizes))
        for number in 1 + np.flatnonzero((sizes[1:] >= _MIN_PIXELS) & (cores[1:] >= _MIN_CORE)):
            mask = np.zeros((SIZE, SIZE), dtype=bool)
            mask[window] = labels[1:-1, 1:-1] == number
            found += _cut(index, mask)
    return found


def _patch_at(row: int, column: int) -> tuple[slice, slice]:
    """The P x P window of a bordered field whose middle is pixel (row, column) of the picture."""
    top, left = row + PATCH - _HALF, column + PATCH - _HALF
    return slice(top, top + PATCH), slice(left, left + PATCH)


def _cut(colour: int, mask: np.ndarray) -> list[_Candidate]:
    """One candidate where the component [H, W] is no larger than an object, else one a cell that it fills."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    wide = _bordered(mask)
    middle = (rows[0] + rows[-1]) // 2, (columns[0] + columns[-1]) // 2
    if rows[-1] - rows[0] < _WIDEST and columns[-1] - columns[0] < _WIDEST:
        return [_Candidate(colour, wide, _patch_at(*middle), split=False)]
    found = []
    for cell in range(len(PLACES)):
        row, column = (int((part + 0.5) * _CELL) for part in divmod(cell, 3))
        if mask[row - _CORE : row + _CORE + 1, column - _CORE : column + _CORE + 1].mean() >= 0.4:
            found.append(_Candidate(colour, wide, _patch_at(row, column), split=True))
    return found or [_Candidate(colour, wide, _patch_at(*middle), split=False)]


def _look(layers: _Layers, thing: _Candidate) -> _Evidence:
    inside = layers.chroma[thing.mask]
    rank = int(0.9 * len(inside))
    full = float(np.partition(inside, rank)[rank])
    mean = layers.vector[thing.mask].mean(axis=0)
    strength = layers.vector[thing.patch] @ (mean / (np.linalg.norm(mean) * full))
    # What another object covers may be hidden, what lies outside the picture cannot be seen: neither counts.
    counts = thing.mask[thing.patch] | (layers.colour[thing.patch] == _BACKGROUND)
    return _Evidence(np.clip(strength, 0, 1).astype(np.float32).ravel(), counts.astype(np.float32).ravel())


def _overlap(both: np.ndarray, template: np.ndarray, energy: np.ndarray) -> np.ndarray:
    """Soft intersection over union from the product of patch and template and the square of each."""
    return both / np.maximum(template + energy - both, 1e-6)


def _fit(seen: list[_Evidence]) -> list[_Fit]:
    """The best template of each patch: a coarse search over all shapes, then finer ones over the best few."""
    counts = np.stack([one.counts for one in seen])
    fill = np.minimum(1, 2 * np.stack([one.strength for one in seen]))
    weighted = fill * counts
    energy = (weighted * fill).sum(axis=1, keepdims=True)
    bank = coarse_templates()
    # Coarsely a template's square is as good as itself, so that one product gives both sums.
    both, square = np.split(4 * pool(np.concatenate([weighted, counts])) @ bank.soft.T, 2)
    overlap = _overlap(both, square, energy)
    chosen = _best_of_each_shape(overlap, len(SHAPES))
    for shapes, reach in ((3, 2), (2, 1)):
        bank = nearby(bank, chosen[:, :shapes], reach)
        both = (bank.soft @ weighted[..., None])[..., 0]
        square = ((bank.soft * bank.soft) @ counts[..., None])[..., 0]
        overlap = _overlap(both, square, energy)
        chosen = _best_of_each_shape(overlap, shapes)
    return [_choose(bank, index, overlap[index], one) for index, one in enumerate(seen)]


def _best_of_each_shape(overlap: np.ndarray, shapes: int) -> np.ndarray:
    """Each shape's best template int [K, shapes], best shape first; overlaps [K, T] lie in runs by shape."""
    runs = overlap.reshape(len(overlap), shapes, -1)
    best = runs.argmax(axis=2) + runs.shape[2] * np.arange(shapes)
    order = np.argsort(-runs.max(axis=2), axis=1)
    return np.take_along_axis(best, order, axis=1)


def _choose(bank: Templates, index: int, overlap: np.ndarray, seen: _Evidence) -> _Fit:
    best = int(overlap.argmax())
    shape, radius = int(bank.shape[index, best]), float(bank.radius[index, best])
    half_tones = (seen.strength > 0.1) & (seen.strength < 0.45) & (seen.counts > 0)
    return _Fit(
        shape,
        radius,
        x=float(bank.x[index, best]),
        y=float(bank.y[index, best]),
        overlap=float(overlap[best]),
        margin=float(overlap[best] - overlap[bank.shape[index] != shape].max()),
        softness=float(half_tones.sum() / (PERIMETERS[shape] * radius)),
        outline=bank.soft[index, best].reshape(PATCH, PATCH) > 0,
    )


def _without(things: list[_Candidate], fits: list[_Fit], index: int, seen: _Evidence) -> _Evidence:
    """The evidence less the pixels that other objects cut from the same component account for."""
    mine = things[index]
    taken = np.zeros(mine.mask.shape, dtype=bool)
    for other, fit in enumerate(fits):
        if other != index and things[other].mask is mine.mask:
            taken[things[other].patch] |= fit.outline
    return _Evidence(seen.strength, seen.counts * ~taken[mine.patch].ravel())


def _fit_all(layers: _Layers, things: list[_Candidate]) -> list[_Fit]:
    seen = [_look(layers, thing) for thing in things]
    fits = _fit(seen)
    for _ in range(2):
        for index, thing in enumerate(things):
            if thing.split:
                fits[index] = _fit([_without(things, fits, index, seen[index])])[0]
    return fits


def _texture(brightness: np.ndarray, inner: np.ndarray) -> str:
    """Plain, striped or dotted, from the brightness [P, P] of the pixels well inside the outline.

    A stripe is as dark all along a falling diagonal, so that the diagonals' means carry most of the variance.
    """
    rows, columns = np.nonzero(inner)
    if len(rows) < _MIN_CORE:
        return TEXTURES[0]
    values = brightness[rows, columns]
    if (values < _DARK * np.sort(values)[int(0.9 * len(values))]).mean() < _PLAIN_SHARE:
        return TEXTURES[0]
    diagonal = rows + columns
    number = np.maximum(np.bincount(diagonal), 1)
    means = np.bincount(diagonal, weights=values) / number
    return TEXTURES[1] if means[diagonal].var() > _STRIPED_SHARE * values.var() else TEXTURES[2]


def _describe(layers: _Layers, thing: _Candidate, fit: _Fit) -> ReadObject:
    rows, columns = thing.patch
    x = columns.start - PATCH + PATCH / 2 + fit.x
    y = rows.start - PATCH + PATCH / 2 + fit.y
    cell_row, cell_column = (min(max(int(at / _CELL), 0), 2) for at in (y, x))
    sure = fit.overlap >= MIN_OVERLAP and fit.margin >= MIN_MARGIN and fit.softness <= MAX_SOFTNESS
    own = thing.mask[thing.patch] & fit.outline if thing.split else thing.mask[thing.patch]
    down, across = np.flatnonzero(own.any(axis=1)), np.flatnonzero(own.any(axis=0))
    top, left = rows.start - PATCH, columns.start - PATCH
    return ReadObject(
        colour=COLOURS[thing.colour],
        shape=SHAPES[fit.shape] if sure else UNKNOWN,
        place=PLACES[3 * cell_row + cell_column],
        size="small" if fit.radius < _SIZE_BORDER else "large",
        texture=_texture(layers.brightness[thing.patch], _core(own & fit.outline)),
        box=(
            int(left + across[0]),
            int(top + down[0]),
            int(left + across[-1] + 1),
            int(top + down[-1] + 1),
        ),
        x=x,
        y=y,
        radius=fit.radius,
        overlap=fit.overlap,
        margin=fit.margin,
        softness=fit.softness,
    )


def read_scene(picture: np.ndarray) -> tuple[ReadObject, ...]:
    """The objects of a picture, uint8 [64, 64, 3], by place in reading order.

    Raises:
        UserError: the picture has another shape or type.
    """
    if picture.shape != (SIZE, SIZE, 3) or picture.dtype != np.uint8:
        raise UserError(
            f"the scene reader reads uint8 pictures [{SIZE}, {SIZE}, 3], not {picture.dtype}"
            f" {list(picture.shape)}; resize the picture first"
        )
    layers = _separate(picture)
    things = _candidates(layers.colour)
    if not things:
        return ()
    read = [_describe(layers, thing, fit) for thing, fit in zip(things, _fit_all(layers, things), strict=True)]
    return tuple(sorted(read, key=lambda one: PLACES.index(one.place)))
