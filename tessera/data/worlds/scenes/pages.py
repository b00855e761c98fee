"""Interleaved pages: two to five pictures and the running text that ties them together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tessera.data.worlds.scenes.captions import canonical_caption, noun_phrase
from tessera.data.worlds.scenes.edits import KINDS, SAFE_KINDS, Change, EditKind, any_change, instruct
from tessera.data.worlds.scenes.graph import Scene, Split
from tessera.data.worlds.scenes.referring import refer_surely
from tessera.data.worlds.scenes.words import NUMBERS, article, counted, pick, sequence

PageKind = Literal["story", "comparison", "examples", "album"]


@dataclass(frozen=True, slots=True)
class Shown:
    """A picture on a page; `number` where it is one of the shared pictures of the split, else None."""

    scene: Scene
    number: int | None = None


Part = str | Shown


@dataclass(frozen=True, slots=True)
class Page:
    """Text and pictures in reading order."""

    kind: PageKind
    parts: tuple[Part, ...]

    @property
    def scenes(self) -> tuple[Scene, ...]:
        return tuple(part.scene for part in self.parts if isinstance(part, Shown))


Draw = Callable[[], Shown]  # another shared picture of the same split, at random

_FIRST = ("first, {caption}.", "we begin with {caption}.", "the first picture shows {caption}.", "{caption}.")
_NEXT = ("then we {do}.", "next, {do}.", "now {do}.", "after that, {do}.", "the next step: {do}.")
_LAST = ("that is all.", "this is the last picture.", "the end.", "")

_HAS = ("this picture has {what}.", "here we see {what}.", "in the first picture we see {what}.")
_DIFFERENCES: dict[EditKind, tuple[str, ...]] = {
    "add": (
        "the next picture has one object more: {thing} at the {place}.",
        "the next one also has {thing} at the {place}.",
        "now with {thing} added at the {place}.",
    ),
    "remove": (
        "the next picture has one object less, without {the}.", "the next one lacks {the}.",
        "now without {the}.",
    ),
    "resize": ("in the next picture {the} is {larger}.", "the next one is alike but {the} is {larger}."),
    "retexture": ("in the next picture {the} is {texture}.", "the next one is alike but {the} is {texture}."),
    "recolour": ("in the next picture {the} is {colour}.", "the next one is alike but {the} is {colour}."),
}  # fmt: skip
_TOTAL = ("now we see {what}.", "that makes {what}.", "it has {what}.")

_TASKS: dict[str, tuple[str, ...]] = {
    "caption": ("caption", "description", "it shows"),
    "count": ("objects", "number", "how many"),
    "colors": ("colors", "color", "which colors"),
    "shapes": ("shapes", "shape", "which shapes"),
}
_ALBUM = ("picture {n}: {caption}.", "here is {caption}.", "{caption}.", "number {n} shows {caption}.")


def _objects(scene: Scene) -> str:
    """Colours and shapes in reading order: "a red star and a blue circle"."""
    return sequence([article(noun_phrase(thing)) for thing in scene.reading_order()])


def _caption(scene: Scene, rng: np.random.Generator) -> str:
    """Short of words, so that a page of five pictures fits a row; half say every attribute."""
    return canonical_caption(scene) if rng.random() < 0.5 else _objects(scene)


def _kinds(split: Split) -> tuple[EditKind, ...]:
    """Held-out pages only make changes after which every object is a held-out triple still."""
    return KINDS if split == "train" else SAFE_KINDS


def _story(first: Shown, more: Draw, rng: np.random.Generator, split: Split) -> list[Part]:
    """One scene that is edited step by step."""
    scene = first.scene
    parts: list[Part] = [pick(rng, _FIRST).format(caption=canonical_caption(scene)), first]
    join = pick(rng, _NEXT)
    for _ in range(int(rng.integers(1, 5))):
        made = any_change(scene, rng, split, _kinds(split))
        scene = made.after
        parts += [join.format(do=instruct(made, rng)), Shown(scene)]
    ending = pick(rng, _LAST)
    return [*parts, ending] if ending else parts


def _difference(made: Change, rng: np.random.Generator) -> str:
    """What sets the scene after a change apart from the one before."""
    thing = made.new or made.old
    assert thing is not None
    return pick(rng, _DIFFERENCES[made.kind]).format(
        the=refer_surely(made.before, made.position, rng).phrase if made.old else "",
        thing=article(noun_phrase(thing, ("size", "texture"))),
        place=thing.place,
        larger="larger" if thing.size == "large" else "smaller",
        texture=thing.texture,
        colour=thing.colour,
    )


def _comparison(first: Shown, more: Draw, rng: np.random.Generator, split: Split) -> list[Part]:
    """Two or three pictures and what sets each apart from the one before."""
    scene = first.scene
    kinds = tuple(kind for kind in _DIFFERENCES if kind in _kinds(split))
    parts: list[Part] = [first]
    said = pick(rng, _HAS).format(what=_objects(scene))
    for _ in range(int(rng.integers(1, 3))):
        made = any_change(scene, rng, split, kinds)
        scene = made.after
        parts += [f"{said} {_difference(made, rng)}", Shown(scene)]
        said = pick(rng, _TOTAL).format(what=counted(len(scene.objects), "object"))
    return [*parts, said]


def _label(task: str, scene: Scene) -> str:
    """The answer of a small task that examples teach."""
    things = scene.reading_order()
    if task == "caption":
        return canonical_caption(scene)
    if task == "count":
        return NUMBERS[len(things)]
    return sequence([thing.colour if task == "colors" else thing.shape for thing in things], last=", ")


def _examples(first: Shown, more: Draw, rng: np.random.Generator, split: Split) -> list[Part]:
    """Three to five pictures, each followed by the answer of one task: examples to learn from in context."""
    task = pick(rng, tuple(_TASKS))
    heading = pick(rng, _TASKS[task])
    parts: list[Part] = []
    for shown in [first, *(more() for _ in range(int(rng.integers(2, 5))))]:
        parts += ["picture:", shown, f"{heading}: {_label(task, shown.scene)}."]
    return parts


def _album(first: Shown, more: Draw, rng: np.random.Generator, split: Split) -> list[Part]:
    """Two to five unrelated pictures, each announced by its caption."""
    announce, parts = pick(rng, _ALBUM), list[Part]()
    for n, shown in enumerate([first, *(more() for _ in range(int(rng.integers(1, 5))))]):
        parts += [announce.format(n=NUMBERS[n + 1], caption=_caption(shown.scene, rng)), shown]
    return parts


_MAKERS: dict[PageKind, Callable[[Shown, Draw, np.random.Generator, Split], list[Part]]] = {
    "story": _story,
    "comparison": _comparison,
    "examples": _examples,
    "album": _album,
}
PAGE_KINDS: tuple[PageKind, ...] = tuple(_MAKERS)


def page(first: Shown, more: Draw, rng: np.random.Generator, split: Split, kind: PageKind | None = None) -> Page:
    """A page of two to five pictures, `first` the first of them, with words between any two.

    All pictures of a page keep to the split: training pages hold no held-out triple in pictures or words, and
    every object of a held-out page is one.

    Args:
        more: gives another picture of the split.
        kind: None draws one.
    """
    chosen = kind if kind is not None else pick(rng, PAGE_KINDS)
    return Page(chosen, tuple(_MAKERS[chosen](first, more, rng, split)))
