"""How far what was learned from some classes carries: to classes that were not learned (base to novel), to other sets
of pictures (cross data set), and to the same classes drawn otherwise (domain shift).

    base, novel = base_and_novel(world.classes)
    transfer(model, {"base": part(world, base), "novel": part(world, novel)}, pixels)

A model is judged on each set with that set's own class names as its only candidates: novel classes among novel names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from tessera.data.few import Only
from tessera.data.images import Pixels
from tessera.data.labelled import ClassesWorld
from tessera.data.readers.classes import TASK
from tessera.data.source import Source, Split
from tessera.errors import UserError
from tessera.evaluate.classification import hits
from tessera.models.classifier import NamesClasses


class Renamable(NamesClasses, Protocol):
    """A model whose classes are given by their names."""

    def renamed(self, classes: Sequence[str]) -> NamesClasses:
        """The same model over other classes."""
        ...


def base_and_novel(classes: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Classes in the order of their names, cut in the middle; the base half has the odd one.

    Raises:
        UserError: fewer than two classes a half can be made of.
    """
    ordered = tuple(sorted(classes))
    if len(ordered) < 3:
        raise UserError(f"{len(ordered)} classes cannot be halved into base and novel ones; three or more can")
    half = (len(ordered) + 1) // 2
    return ordered[:half], ordered[half:]


def harmonic_mean(base: float, novel: float) -> float:
    """2 * base * novel / (base + novel), 0 where both are. Over several data sets it is taken of the two averages."""
    return float(2 * base * novel / (base + novel)) if base + novel else 0.0


class Part:
    """The pictures of some classes of a set."""

    def __init__(self, world: ClassesWorld, classes: Sequence[str]) -> None:
        self.name, self.tasks, self.world = f"{world.name}, {len(classes)} classes", world.tasks, world
        self.classes = tuple(classes)

    def source(self, task: str, split: Split = "train") -> Source:
        """The samples of one split; pictures are not decoded for it."""
        whole, wanted = self.world.source(task, split), {*self.classes}
        return Only(whole, [place for place in range(len(whole)) if whole[place].text in wanted])


def transfer(model: Renamable, sets: Mapping[str, ClassesWorld], pixels: Pixels) -> dict[str, np.ndarray]:
    """For each set, 1.0 where a held-out picture's likeliest class among the set's own is its own, else 0.0.

    Raises:
        UserError: a set has no held-out pictures.
    """
    found = {}
    for name, world in sets.items():
        found[name] = hits(model.renamed(world.classes), world.source(TASK, "heldout"), pixels)
        if not len(found[name]):
            raise UserError(f"{world.name} has no held-out picture to judge by; give a class two pictures or more")
    return found
