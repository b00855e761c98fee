"""Phrases that name exactly one object of a scene, by its own attributes or by its relation to another."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from itertools import combinations

import numpy as np

from tessera.data.worlds.scenes.graph import Scene, SceneObject
from tessera.data.worlds.scenes.words import DIRECTIONS, PLACE_FORMS, holds, pick

ATTRIBUTES = ("size", "texture", "colour", "shape", "place")


@dataclass(frozen=True, slots=True)
class Referral:
    """A phrase, the object that it names, and why it names only that one.

    Attributes:
        said: the attributes of the object that the phrase says.
        relation: (direction, index of the other object) where the phrase needs it, else None.
    """

    phrase: str
    index: int
    said: tuple[str, ...]
    relation: tuple[str, int] | None = None

    def fits(self, scene: Scene, index: int) -> bool:
        """Whether the phrase is true of another object of the scene too."""
        thing, meant = scene.objects[index], scene.objects[self.index]
        if any(getattr(thing, name) != getattr(meant, name) for name in self.said):
            return False
        if self.relation is None:
            return True
        direction, anchor = self.relation
        return index != anchor and holds(direction, thing, scene.objects[anchor])


@cache
def _smallest(differences: frozenset[int], without: frozenset[str]) -> tuple[tuple[str, ...], ...]:
    """The smallest sets of attributes that meet every difference, a bit set over ATTRIBUTES."""
    bits = [i for i, name in enumerate(ATTRIBUTES) if name not in without]
    found: list[int] = []
    for subset in (subset for size in range(len(bits) + 1) for subset in combinations(bits, size)):
        code = sum(1 << bit for bit in subset)
        if all(code & difference for difference in differences) and not any(f & code == f for f in found):
            found.append(code)
    return tuple(tuple(name for i, name in enumerate(ATTRIBUTES) if code >> i & 1) for code in found)


def identifying(scene: Scene, index: int, without: frozenset[str] = frozenset()) -> tuple[tuple[str, ...], ...]:
    """The smallest sets of attributes that single out an object: no part of a set does so by itself.

    Empty where nothing does: two objects that differ only in what `without` forbids to say.
    """
    thing, differences = scene.objects[index], set[int]()
    for other in scene.objects:
        if other is not thing:
            pairs = enumerate(ATTRIBUTES)
            differences.add(sum(1 << i for i, name in pairs if getattr(thing, name) != getattr(other, name)))
    return _smallest(frozenset(differences), without)


def describe(thing: SceneObject, said: Iterable[str], rng: np.random.Generator, noun: str = "object") -> str:
    """A noun phrase without article: "small red star at the top". `noun` stands in for a shape unsaid."""
    said = set(said)
    words = [getattr(thing, name) for name in ("size", "texture", "colour") if name in said]
    words.append(thing.shape if "shape" in said else noun)
    if "place" in said:
        words.append(pick(rng, PLACE_FORMS[thing.place][:-1]))
    return " ".join(words)


def refer(scene: Scene, index: int, rng: np.random.Generator, without: Iterable[str] = ()) -> Referral | None:
    """A phrase for one object that says none of the attributes in `without`.

    None where there is no such phrase. It says one of the smallest sufficient sets of attributes, and in half
    of the cases one more.
    """
    without = frozenset(without)
    choices = identifying(scene, index, without)
    if not choices:
        return None
    said = set(pick(rng, choices))
    spare = [name for name in ATTRIBUTES if name not in said and name not in without]
    if spare and (not said or rng.random() < 0.5):
        said.add(pick(rng, spare))
    ordered = tuple(name for name in ATTRIBUTES if name in said)
    return Referral(f"the {describe(scene.objects[index], ordered, rng)}", index, ordered)


def refer_surely(scene: Scene, index: int, rng: np.random.Generator) -> Referral:
    """A phrase for one object that may say anything of it: the place, if nothing else, is its own."""
    referral = refer(scene, index, rng)
    assert referral is not None
    return referral


def refer_by_relation(scene: Scene, index: int, rng: np.random.Generator) -> Referral | None:
    """A phrase by another object: "the star left of the red circle"; None where none singles it out."""
    thing, options = scene.objects[index], list[Referral]()
    for anchor, other in enumerate(scene.objects):
        named = refer(scene, anchor, rng, without=("place",)) if anchor != index else None
        if named is None:
            continue
        for direction in (way for way in DIRECTIONS if holds(way, thing, other)):
            for said in ((), ("shape",), ("colour",), ("colour", "shape")):
                words = f"the {describe(thing, said, rng)} {pick(rng, DIRECTIONS[direction][2])} {named.phrase}"
                option = Referral(words, index, said, (direction, anchor))
                if sum(option.fits(scene, i) for i in range(len(scene.objects))) == 1:
                    options.append(option)
    return pick(rng, options) if options else None


def refer_to_any(scene: Scene, rng: np.random.Generator) -> Referral:
    """A phrase for an object of the scene, both drawn at random; three in ten by relation where possible."""
    index = int(rng.integers(len(scene.objects)))
    related = refer_by_relation(scene, index, rng) if rng.random() < 0.3 else None
    return related or refer_surely(scene, index, rng)
