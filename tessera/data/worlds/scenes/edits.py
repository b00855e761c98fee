"""Edits: a scene, an instruction and the scene after it, or one that cannot be followed and why."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from tessera.data.worlds.scenes.graph import (
    COLOURS,
    HUES,
    PLACES,
    RADII,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
    SceneObject,
    Split,
    is_heldout,
    place_object,
)
from tessera.data.worlds.scenes.referring import ATTRIBUTES, describe, refer_surely
from tessera.data.worlds.scenes.words import PATTERNS, PLACE_FORMS, article, pick, weighted

EditKind = Literal["recolour", "reshape", "retexture", "resize", "move", "add", "remove"]
Reason = Literal["absent", "taken"]
MOST_OBJECTS = 4
IMPOSSIBLE = 0.15  # share of edits that cannot be done


@dataclass(frozen=True, slots=True)
class Edit:
    """A scene, what is asked for, and the scene then; where it cannot be, None and a `reply` with why."""

    kind: EditKind
    before: Scene
    instruction: str
    after: Scene | None
    reply: str = ""
    reason: Reason | None = None

    @property
    def possible(self) -> bool:
        return self.after is not None


@dataclass(frozen=True, slots=True)
class Change:
    """One object replaced by another, gained (`old` is None) or lost (`new` is None).

    `position` is its place in the order from back to front; `before` and `after` are the whole scenes.
    """

    kind: EditKind
    before: Scene
    after: Scene
    old: SceneObject | None
    new: SceneObject | None
    position: int

    def reversed(self) -> Change:
        """The way back."""
        kind = _BACK.get(self.kind, self.kind)
        return Change(kind, self.after, self.before, self.new, self.old, self.position)


_BACK: dict[EditKind, EditKind] = {"add": "remove", "remove": "add"}

INSTRUCTIONS: dict[EditKind, tuple[str, ...]] = {
    "recolour": (
        "make {the} {colour}", "paint {the} {colour}", "change the color of {the} to {colour}",
        "turn {the} {colour}", "color {the} {colour}",
    ),
    "reshape": (
        "turn {the} into {a_shape}", "change {the} into {a_shape}", "make {the} {a_shape}",
        "change the shape of {the} to {a_shape}",
    ),
    "retexture": (
        "make {the} {texture}", "change the pattern of {the} to {texture}", "turn {the} {texture}",
        "give {the} {pattern}", "draw {the} with {pattern}",
    ),
    "resize": (
        "make {the} {size_change}", "make {the} {size}", "draw {the} {size_change}",
        "change the size of {the} to {size}",
    ),
    "move": (
        "move {the} to the {place}", "put {the} {at_place}", "shift {the} to the {place}",
        "place {the} {at_place}",
    ),
    "add": (
        "add {a_thing} {at_place}", "draw {a_thing} {at_place}", "put {a_thing} {at_place}",
        "insert {a_thing} {at_place}",
    ),
    "remove": ("remove {the}", "delete {the}", "take away {the}", "erase {the}", "take {the} out"),
}  # fmt: skip
ABSENT = ("there is no {thing} in the picture", "we see no {thing} here", "the picture has no {thing}")
TAKEN = ("the {place} is taken", "there is already an object {at_place}", "the {place} is not free")
_CHANGED = {
    "recolour": "colour",
    "reshape": "shape",
    "retexture": "texture",
    "resize": "size",
    "move": "place",
}
_VALUES = {"colour": COLOURS, "shape": SHAPES, "texture": TEXTURES, "size": SIZES}


def _recoloured(thing: SceneObject, colour: str, rng: np.random.Generator) -> SceneObject:
    return replace(thing, colour=colour, hue=HUES[colour] + rng.uniform(-5, 5))


def _resized(thing: SceneObject, size: str, rng: np.random.Generator) -> SceneObject:
    return replace(thing, size=size, radius=rng.uniform(*RADII[size]))


def _moved(thing: SceneObject, place: str, rng: np.random.Generator) -> SceneObject:
    there = place_object(rng, thing.colour, thing.shape, place)
    return replace(thing, place=place, x=there.x, y=there.y)


_ALTER: dict[EditKind, Callable[[SceneObject, str, np.random.Generator], SceneObject]] = {
    "recolour": _recoloured,
    "reshape": lambda thing, shape, rng: replace(thing, shape=shape),
    "retexture": lambda thing, texture, rng: replace(thing, texture=texture),
    "resize": _resized,
    "move": _moved,
}
KINDS: tuple[EditKind, ...] = (*_ALTER, "add", "remove")
# Changes that leave the triples of a scene's objects in their split whatever they are.
SAFE_KINDS: tuple[EditKind, ...] = ("retexture", "resize", "add", "remove")


def _replace_at(scene: Scene, position: int, *things: SceneObject) -> Scene:
    """The scene with the object at `position` replaced by none, one or more."""
    rest = scene.objects[position + 1 :]
    return replace(scene, objects=(*scene.objects[:position], *things, *rest))


def free_places(scene: Scene) -> list[str]:
    """Places without an object."""
    return [place for place in PLACES if all(thing.place != place for thing in scene.objects)]


def change(scene: Scene, rng: np.random.Generator, kind: EditKind, split: Split) -> Change | None:
    """A random change of this kind; None where the scene is full, or has nothing to spare.

    A new or altered object of the training split never is a held-out triple. In the held-out split an added
    object is one; an object of another colour, shape or place cannot be, for two held-out triples differ in
    two attributes or more.
    """
    if kind == "add":
        if len(scene.objects) >= MOST_OBJECTS:
            return None
        new = _new_object(scene, rng, split)
        after = replace(scene, objects=(*scene.objects, new))
        return Change(kind, scene, after, None, new, len(scene.objects))
    position = int(rng.integers(len(scene.objects)))
    old = scene.objects[position]
    if kind == "remove":
        if len(scene.objects) == 1:
            return None
        return Change(kind, scene, _replace_at(scene, position), old, None, position)
    altered = _altered(scene, old, rng, kind, split)
    if altered is None:
        return None
    return Change(kind, scene, _replace_at(scene, position, altered), old, altered, position)


def _new_object(scene: Scene, rng: np.random.Generator, split: Split) -> SceneObject:
    places = free_places(scene)
    while True:
        colour, shape, place = pick(rng, COLOURS), pick(rng, SHAPES), pick(rng, places)
        if is_heldout(colour, shape, place) == (split == "heldout"):
            return place_object(rng, colour, shape, place)


def _altered(
    scene: Scene, old: SceneObject, rng: np.random.Generator, kind: EditKind, split: Split
) -> SceneObject | None:
    attribute = _CHANGED[kind]
    names = free_places(scene) if kind == "move" else _VALUES[attribute]
    options = [
        name
        for name in names
        if name != getattr(old, attribute)
        and not (split == "train" and is_heldout(*replace(old, **{attribute: name}).triple))  # type: ignore[arg-type]
    ]
    return _ALTER[kind](old, pick(rng, options), rng) if options else None


def instruct(made: Change, rng: np.random.Generator) -> str:
    """Words that lead from the scene before to the one after."""
    if made.old is None:
        return _say(made.kind, "", made.new, rng)
    named = refer_surely(made.before, made.position, rng)
    return _say(made.kind, named.phrase, made.new or made.old, rng)


def _say(kind: EditKind, the: str, wanted: SceneObject | None, rng: np.random.Generator) -> str:
    assert wanted is not None
    return pick(rng, INSTRUCTIONS[kind]).format(
        the=the,
        colour=wanted.colour,
        a_shape=article(wanted.shape),
        texture=wanted.texture,
        pattern=PATTERNS[wanted.texture],
        size=wanted.size,
        size_change="larger" if wanted.size == "large" else "smaller",
        place=wanted.place,
        at_place=pick(rng, PLACE_FORMS[wanted.place][:-1]),
        a_thing=article(describe(wanted, ATTRIBUTES[:4], rng)),
    )


def any_change(scene: Scene, rng: np.random.Generator, split: Split, kinds: Iterable[EditKind] = KINDS) -> Change:
    """A change of one of these kinds that the scene allows; `kinds` holds "retexture" or "resize"."""
    left = list(kinds)
    while True:
        kind = pick(rng, left)
        made = change(scene, rng, kind, split)
        if made:
            return made
        left.remove(kind)


def edit(scene: Scene, rng: np.random.Generator, split: Split) -> Edit:
    """An edit about a scene of this split; about one in seven cannot be done.

    Training: `scene` is the scene before, and neither scene nor any sentence holds a held-out triple.
    Held-out: every object of the scene after is a held-out triple. Where colour, shape or place change,
    `scene` is the scene after, and the one object to be changed in the scene before is a training triple (it has
    to be: held-out triples differ in two attributes or more). Else `scene` is the scene before.
    """
    if rng.random() < IMPOSSIBLE:
        return _impossible(scene, rng, split)
    made = any_change(scene, rng, split)
    if split == "heldout" and made.kind not in SAFE_KINDS:
        made = made.reversed()
    return Edit(made.kind, made.before, instruct(made, rng), made.after)


def _impossible(scene: Scene, rng: np.random.Generator, split: Split) -> Edit:
    reason: Reason = weighted(rng, ("absent", "taken"), (0.6, 0.4))
    if reason == "taken":
        edit_to_taken = _move_to_taken(scene, rng, split)
        if edit_to_taken:
            return edit_to_taken
    said = pick(rng, (("shape",), ("colour", "shape"), ("colour", "shape")))
    while True:
        missing = _new_object(scene, rng, "train")
        if all(any(getattr(o, name) != getattr(missing, name) for name in said) for o in scene.objects):
            break
    thing = describe(missing, said, rng)
    kind = pick(rng, [kind for kind in KINDS if kind != "add"])
    wanted = _altered(scene, missing, rng, kind, "train") if kind != "remove" else missing
    reply = pick(rng, ABSENT).format(thing=thing)
    return Edit(kind, scene, _say(kind, f"the {thing}", wanted, rng), None, reply, "absent")


def _move_to_taken(scene: Scene, rng: np.random.Generator, split: Split) -> Edit | None:
    """Move an object, or add a new one, to where another is; None where the split has no words for it."""
    position = int(rng.integers(len(scene.objects)))
    place = pick(rng, scene.objects).place
    mover = scene.objects[position]
    if mover.place == place:
        kind, the = "add", ""
        mover = place_object(rng, pick(rng, COLOURS), pick(rng, SHAPES), place)
    else:
        kind, the = "move", refer_surely(scene, position, rng).phrase
        mover = replace(mover, place=place)
    if split == "train" and is_heldout(*mover.triple):
        return None
    words = _say(kind, the, mover, rng)  # type: ignore[arg-type]
    reply = pick(rng, TAKEN).format(place=place, at_place=PLACE_FORMS[place][0])
    return Edit(kind, scene, words, None, reply, "taken")  # type: ignore[arg-type]
