"""Compare objects as read from a picture with a scene, or with the objects that a text names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from tessera.data.worlds.scenes.graph import PLACES, Scene, SceneObject
from tessera.errors import UserError, nearest
from tessera.evaluate.scene_reader import ReadObject

FIELDS = ("colour", "shape", "place", "size", "texture")
Named = Sequence[str | None]  # (colour, shape, place, size, texture), cut short anywhere; None is not said
Thing = ReadObject | SceneObject | Named


def _values(thing: Thing, fields: Sequence[str]) -> tuple[str | None, ...]:
    if isinstance(thing, ReadObject | SceneObject):
        return tuple(getattr(thing, field) for field in fields)
    said = dict(zip(FIELDS, thing, strict=False))
    return tuple(said.get(field) for field in fields)


def agreement(
    read: Iterable[Thing], wanted: Scene | Iterable[Thing], fields: Sequence[str] = ("colour", "shape")
) -> tuple[int, int, int]:
    """How many objects pair up one to one with all `fields` equal; a field that one side does not say agrees.

    Returns:
        (pairs, number read, number wanted).

    Raises:
        UserError: an unknown field.
    """
    for field in fields:
        if field not in FIELDS:
            raise UserError(f"objects have no field {field!r}{nearest(field, FIELDS)}")
    left = [_values(thing, fields) for thing in read]
    right = [_values(thing, fields) for thing in (wanted.objects if isinstance(wanted, Scene) else wanted)]
    if not left or not right:
        return 0, len(left), len(right)
    agree = np.array([[_agree(a, b) for b in right] for a in left])
    rows, columns = linear_sum_assignment(agree, maximize=True)
    return int(agree[rows, columns].sum()), len(left), len(right)


def _agree(left: Sequence[str | None], right: Sequence[str | None]) -> bool:
    return all(a is None or b is None or a == b for a, b in zip(left, right, strict=True))


def matches(
    read: Iterable[Thing], wanted: Scene | Iterable[Thing], fields: Sequence[str] = ("colour", "shape")
) -> bool:
    """Whether the objects read are exactly those wanted: none missing, none too many, all `fields` equal.

    Args:
        wanted: a Scene, its objects, or tuples (colour, shape, place, size, texture) as `mentioned_objects`
            gives them, where None and what is cut off match anything. An "unknown" shape matches no name.
    """
    pairs, number_read, number_wanted = agreement(read, wanted, fields)
    return pairs == number_read == number_wanted


def contains(
    read: Iterable[Thing], wanted: Scene | Iterable[Thing], fields: Sequence[str] = ("colour", "shape")
) -> bool:
    """Whether every object wanted is there; others may be there too."""
    pairs, _, number_wanted = agreement(read, wanted, fields)
    return pairs == number_wanted


def relation(a: ReadObject | SceneObject, b: ReadObject | SceneObject) -> tuple[int, int]:
    """Where A's cell lies as seen from B's, (columns, rows), each -1, 0 or 1: (-1, 0) is left of."""
    (row_a, column_a), (row_b, column_b) = (divmod(PLACES.index(thing.place), 3) for thing in (a, b))
    return int(np.sign(column_a - column_b)), int(np.sign(row_a - row_b))


def relations(
    things: Sequence[ReadObject | SceneObject],
) -> set[tuple[tuple[str, str], tuple[int, int], tuple[str, str]]]:
    """Every ordered pair as ((colour, shape), relation, (colour, shape))."""
    return {((a.colour, a.shape), relation(a, b), (b.colour, b.shape)) for a in things for b in things if a is not b}
