"""Words of the scenes world: articles, plurals, places and relations, tables that writer and reader share."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from itertools import accumulate
from typing import TypeVar

import numpy as np

from tessera.data.worlds.scenes.graph import PLACES, SceneObject

T = TypeVar("T")

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PATTERNS = {"plain": "no pattern", "striped": "stripes", "dotted": "dots"}  # a texture as a noun
GROUNDS = {"plain": "plain", "gradient": "shaded", "speckled": "speckled", "checked": "checked"}

_CORNER = ("at the {}", "in the {}", "in the {} corner", "on the {}", "{}")
_EDGE = ("at the {}", "near the {}", "at the {} edge", "at the {} side", "{}")
_SIDE = ("on the {}", "at the {}", "on the {} side", "near the {} edge", "{}")
_CENTER = ("in the {}", "at the {}", "in the middle", "right in the middle", "{}")
_FORMS = dict(zip(PLACES, (_CORNER, _EDGE, _CORNER, _SIDE, _CENTER, _SIDE, _CORNER, _EDGE, _CORNER), strict=True))
# What follows "A is" to say where it is. Every place has the same number of forms, the bare name last.
PLACE_FORMS = {place: tuple(form.format(place) for form in _FORMS[place]) for place in PLACES}

# Where A lies as seen from B: (columns, rows) from B to A, each -1, 0 or 1.
RELATIONS = {
    (-1, 0): ("to the left of", "left of", "on the left of"),
    (1, 0): ("to the right of", "right of", "on the right of"),
    (0, -1): ("above", "higher than", "straight above"),
    (0, 1): ("below", "lower than", "straight below"),
    (-1, -1): ("above and to the left of", "up and to the left of", "diagonally above and left of"),
    (1, -1): ("above and to the right of", "up and to the right of", "diagonally above and right of"),
    (-1, 1): ("below and to the left of", "down and to the left of", "diagonally below and left of"),
    (1, 1): ("below and to the right of", "down and to the right of", "diagonally below and right of"),
}
# The same, where B was named before and is "it".
ITS_RELATIONS = {
    (-1, 0): ("to its left", "on its left"),
    (1, 0): ("to its right", "on its right"),
    (0, -1): ("above it", "over it"),
    (0, 1): ("below it", "under it"),
    (-1, -1): ("above it and to its left", "up and to its left"),
    (1, -1): ("above it and to its right", "up and to its right"),
    (-1, 1): ("below it and to its left", "down and to its left"),
    (1, 1): ("below it and to its right", "down and to its right"),
}


def pick(rng: np.random.Generator, choices: Sequence[T]) -> T:
    """One of the choices, all equally likely."""
    return choices[int(rng.random() * len(choices))]


def weighted(rng: np.random.Generator, choices: Sequence[T], weights: Sequence[float]) -> T:
    """One of the choices, by weights of any sum."""
    sums = list(accumulate(weights))
    return choices[min(bisect(sums, rng.random() * sums[-1]), len(choices) - 1)]


def article(phrase: str) -> str:
    """The phrase with "a" or "an" before it."""
    return f"an {phrase}" if phrase[0] in "aeiou" else f"a {phrase}"


def plural(shape: str) -> str:
    """More than one of a shape or object."""
    return shape + ("es" if shape.endswith("s") else "s")


def counted(number: int, noun: str) -> str:
    """A number word and its noun: "one star", "two stars", "no stars"."""
    return f"{NUMBERS[number] if number else 'no'} {noun if number == 1 else plural(noun)}"


def offset(a: SceneObject, b: SceneObject) -> tuple[int, int]:
    """Where A's cell lies as seen from B's, (columns, rows), each -1, 0 or 1: a key of RELATIONS."""
    return _sign(a.column - b.column), _sign(a.row - b.row)


def _sign(number: int) -> int:
    return (number > 0) - (number < 0)


def sequence(items: Sequence[str], between: str = ", ", last: str = " and ") -> str:
    """Items as one list in words: "a, b and c"."""
    return last.join([between.join(items[:-1]), items[-1]]) if len(items) > 1 else items[0]


# The four yes/no directions: axis of `offset` (0 column, 1 row), its sign, and how to say it.
DIRECTIONS = {
    "left": (0, -1, ("left of", "to the left of")),
    "right": (0, 1, ("right of", "to the right of")),
    "above": (1, -1, ("above", "higher than")),
    "below": (1, 1, ("below", "lower than")),
}


def holds(direction: str, a: SceneObject, b: SceneObject) -> bool:
    """Whether A lies that way of B: "left" says that A's column is further left, whatever the rows are."""
    axis, sign, _ = DIRECTIONS[direction]
    return offset(a, b)[axis] == sign
