"""Questions about a scene with short answers, balanced so that no type can be answered without looking.

The wanted answer is drawn first and a question with that answer is built after it, so that rejecting
questions that a scene cannot have does not tilt the answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from tessera.data.worlds.scenes.graph import (
    COLOURS,
    PLACES,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
    SceneObject,
    Split,
    is_heldout,
    random_scene,
)
from tessera.data.worlds.scenes.referring import Referral, describe, refer
from tessera.data.worlds.scenes.words import (
    DIRECTIONS,
    NUMBERS,
    article,
    holds,
    pick,
    plural,
    weighted,
)

Kind = Literal["existence", "count", "colour", "shape", "place", "relation", "comparison"]


@dataclass(frozen=True, slots=True)
class Question:
    """A question, its answer (one to three words) and its type; `form` tells the sorts of one type apart."""

    text: str
    answer: str
    kind: Kind
    form: str


_VALUES = {"colour": COLOURS, "shape": SHAPES, "place": PLACES, "size": SIZES, "texture": TEXTURES}
_YES = {True: "yes", False: "no"}

# What an existence question says of the object.
_EXISTENCE = (
    ("shape",), ("colour",), ("colour", "shape"), ("colour", "shape"), ("shape", "place"),
    ("colour", "place"), ("texture", "shape"), ("size", "shape"), ("colour", "shape", "place"),
)  # fmt: skip
_EXISTENCE_TEXTS = (
    "is there {a}?",
    "can you see {a}?",
    "does the picture show {a}?",
    "is {a} in the picture?",
)
_COUNT_TEXTS = ("how many {things} are there?", "how many {things} do you see?", "count the {things}.",
                "what is the number of {things}?")  # fmt: skip
# Chance of a count beside the other counts that a scene can answer: high counts are rare, and made up for.
_COUNT_WEIGHTS = (0.8, 1.0, 2.0, 4.0, 6.0)
_OPEN_TEXTS = {
    "colour": ("what color is {the}?", "which color does {the} have?", "what is the color of {the}?"),
    "shape": ("what shape is {the}?", "which shape does {the} have?", "what is the shape of {the}?"),
    "place": ("where is {the}?", "where do you see {the}?", "in which place is {the}?"),
}
_RELATION_TEXTS = ("is {a} {way} {b}?", "does {a} lie {way} {b}?", "do you see {a} {way} {b}?")
_WHAT_TEXTS = ("what is {way} {b}?", "which object is {way} {b}?", "what do you see {way} {b}?")
_MORE_TEXTS = ("are there more {a} than {b}?", "do you see more {a} than {b}?")
_FEWER_TEXTS = ("are there fewer {a} than {b}?", "do you see fewer {a} than {b}?")
_SAME_TEXTS = {
    "colour": ("do {a} and {b} have the same color?", "is {a} the same color as {b}?"),
    "shape": ("do {a} and {b} have the same shape?", "is {a} the same shape as {b}?"),
    "size": ("do {a} and {b} have the same size?", "is {a} as large as {b}?"),
    "texture": ("do {a} and {b} have the same pattern?", "is {a} patterned like {b}?"),
}
_SIZE_TEXTS = {"large": ("is {a} larger than {b}?",), "small": ("is {a} smaller than {b}?",)}
# Chances of the forms of a comparison, where the scene has them all.
_COMPARISONS = {"number": 1.0, "larger": 3.0, "colour": 3.0, "shape": 3.0, "size": 2.0, "texture": 2.0}
# Chances that a pair that differs, and one that agrees, is asked about: pairs of one colour are rarer than
# pairs of two, and each "same" question is to have as many yes as no.
_ACCEPTED = {"colour": (0.26, 1.0), "shape": (0.35, 1.0), "size": (1.0, 0.74), "texture": (0.6, 1.0)}


def _existence(scene: Scene, rng: np.random.Generator) -> Question:
    said, there = pick(rng, _EXISTENCE), rng.random() < 0.5
    thing = pick(rng, scene.objects)
    while not there:
        thing = _altered(pick(rng, scene.objects), said, rng)
        if not _shown(scene, thing, said) and _may_be_said(scene, thing, said):
            break
    text = pick(rng, _EXISTENCE_TEXTS).format(a=article(describe(thing, said, rng)))
    return Question(text, _YES[there], "existence", " ".join(said))


def _altered(thing: SceneObject, said: tuple[str, ...], rng: np.random.Generator) -> SceneObject:
    """A near miss: the object with one or, at times, all of the named attributes drawn anew."""
    names = said if rng.random() < 0.3 else (pick(rng, said),)
    return replace(thing, **{name: pick(rng, _VALUES[name]) for name in names})  # type: ignore[arg-type]


def _shown(scene: Scene, thing: SceneObject, said: tuple[str, ...]) -> bool:
    return any(all(getattr(o, name) == getattr(thing, name) for name in said) for o in scene.objects)


def _may_be_said(scene: Scene, thing: SceneObject, said: tuple[str, ...]) -> bool:
    """Whether the words keep to the split: a training question never names a held-out combination."""
    whole = {"colour", "shape", "place"} <= set(said)
    return not (whole and is_heldout(*thing.triple)) or is_heldout(*scene.objects[0].triple)


def _sets(scene: Scene) -> dict[str, int]:
    """Every set that can be counted, as a plural, and its number."""
    counts = {plural("object"): len(scene.objects)}
    for name in ("colour", "shape", "size", "texture"):
        for value in _VALUES[name]:
            words = plural(value) if name == "shape" else f"{value} objects"
            counts[words] = sum(getattr(o, name) == value for o in scene.objects)
    return counts


def _count(scene: Scene, rng: np.random.Generator) -> Question:
    counts = _sets(scene)
    numbers = sorted(set(counts.values()))
    wanted = weighted(rng, numbers, [_COUNT_WEIGHTS[number] for number in numbers])
    things = pick(rng, [words for words, number in counts.items() if number == wanted])
    return Question(pick(rng, _COUNT_TEXTS).format(things=things), NUMBERS[wanted], "count", "number")


def _open(scene: Scene, rng: np.random.Generator, kind: Kind) -> Question | None:
    """What colour, what shape, where: an object is named without what is asked for."""
    named = _named(scene, rng, kind)
    if not named:
        return None
    chosen = pick(rng, named)
    answer = getattr(scene.objects[chosen.index], kind)
    return Question(pick(rng, _OPEN_TEXTS[kind]).format(the=chosen.phrase), answer, kind, "open")


def _named(scene: Scene, rng: np.random.Generator, *without: str) -> list[Referral]:
    """A phrase for each object that can be named without these attributes."""
    phrases = (refer(scene, index, rng, without) for index in range(len(scene.objects)))
    return [phrase for phrase in phrases if phrase]


def _relation(scene: Scene, rng: np.random.Generator) -> Question | None:
    """None for scenes of one object, or of objects that only their places tell apart."""
    named = _named(scene, rng, "place")  # a place in words would give the answer away
    if len(named) < 2:
        return None
    asks_what = rng.random() < 0.4
    return (_relation_what(scene, rng, named) if asks_what else None) or _relation_check(scene, rng, named)


def _relation_check(scene: Scene, rng: np.random.Generator, named: list[Referral]) -> Question:
    true = rng.random() < 0.5
    a, b = (named[i] for i in rng.permutation(len(named))[:2])
    first, second = scene.objects[a.index], scene.objects[b.index]
    way = pick(rng, [way for way in DIRECTIONS if holds(way, first, second) == true])
    words = pick(rng, DIRECTIONS[way][2])
    text = pick(rng, _RELATION_TEXTS).format(a=a.phrase, way=words, b=b.phrase)
    return Question(text, _YES[true], "relation", "check")


def _relation_what(scene: Scene, rng: np.random.Generator, named: list[Referral]) -> Question | None:
    """Which one object lies that way of another; None where none or several do."""
    found = []
    for anchor in named:
        for way in DIRECTIONS:
            there = [o for o in scene.objects if holds(way, o, scene.objects[anchor.index])]
            if len(there) == 1:
                found.append((anchor.phrase, way, f"{there[0].colour} {there[0].shape}"))
    if not found:
        return None
    phrase, way, answer = pick(rng, found)
    text = pick(rng, _WHAT_TEXTS).format(way=pick(rng, DIRECTIONS[way][2]), b=phrase)
    return Question(text, answer, "relation", "what")


def _comparison(scene: Scene, rng: np.random.Generator) -> Question:
    """The answer first, then a form that can have it: numbers always can."""
    true, forms = rng.random() < 0.5, list(_COMPARISONS)
    while True:
        form = weighted(rng, forms, [_COMPARISONS[form] for form in forms])
        if form == "number":
            return _compare_numbers(scene, rng, true)
        compare = _compare_sizes if form == "larger" else _compare_attribute
        question = compare(scene, rng, true, form) if len(scene.objects) > 1 else None
        if question:
            return question
        forms.remove(form)


def _compare_numbers(scene: Scene, rng: np.random.Generator, true: bool) -> Question:
    """More or fewer of one colour or shape than of another; one of the two, at least, is in the picture."""
    name = pick(rng, ("colour", "shape"))
    first = getattr(pick(rng, scene.objects), name)
    values = Counter(getattr(o, name) for o in scene.objects)
    other = pick(rng, [value for value in _VALUES[name] if values[value] < values[first]])
    fewer = rng.random() < 0.5
    many, few = (plural(v) if name == "shape" else f"{v} objects" for v in (first, other))
    a, b = (many, few) if true != fewer else (few, many)
    text = pick(rng, _FEWER_TEXTS if fewer else _MORE_TEXTS).format(a=a, b=b)
    return Question(text, _YES[true], "comparison", "number")


def _compare_attribute(scene: Scene, rng: np.random.Generator, true: bool, name: str) -> Question | None:
    """Whether two objects share an attribute; None where no pair gives the wanted answer."""
    if rng.random() > _ACCEPTED[name][true]:
        return None
    named = _named(scene, rng, name)
    pairs = [
        (a, b)
        for a in named
        for b in named
        if a.index != b.index
        and (getattr(scene.objects[a.index], name) == getattr(scene.objects[b.index], name)) == true
    ]
    if not pairs:
        return None
    a, b = pick(rng, pairs)
    text = pick(rng, _SAME_TEXTS[name]).format(a=a.phrase, b=b.phrase)
    return Question(text, _YES[true], "comparison", f"same {name}")


def _compare_sizes(scene: Scene, rng: np.random.Generator, true: bool, form: str) -> Question | None:
    """Whether one object is larger than another; None where all are of one size."""
    named = _named(scene, rng, "size")
    groups = {size: [r for r in named if scene.objects[r.index].size == size] for size in SIZES}
    if not all(groups.values()):
        return None
    asked = pick(rng, SIZES)
    right, wrong = pick(rng, groups[asked]), pick(rng, groups[SIZES[1 - SIZES.index(asked)]])
    a, b = (right, wrong) if true else (wrong, right)
    text = pick(rng, _SIZE_TEXTS[asked]).format(a=a.phrase, b=b.phrase)
    return Question(text, _YES[true], "comparison", form)


_MAKERS: dict[Kind, Callable[[Scene, np.random.Generator], Question | None]] = {
    "existence": _existence,
    "count": _count,
    "colour": lambda scene, rng: _open(scene, rng, "colour"),
    "shape": lambda scene, rng: _open(scene, rng, "shape"),
    "place": lambda scene, rng: _open(scene, rng, "place"),
    "relation": _relation,
    "comparison": _comparison,
}
KINDS: tuple[Kind, ...] = tuple(_MAKERS)
# Relations are the hardest to learn and scenes of one object have none: they get their share back here.
_KIND_WEIGHTS: dict[Kind, float] = dict.fromkeys(KINDS, 1.0) | {"relation": 2.5}


def ask(scene: Scene, rng: np.random.Generator, kind: Kind | None = None) -> Question | None:
    """A question about the scene.

    Args:
        kind: the type, never exchanged for another; None draws one that the scene supports.

    Returns:
        None only where `kind` is given and the scene has none: a relation of fewer than two objects.
    """
    if kind is not None:
        return _MAKERS[kind](scene, rng)
    kinds = list(KINDS)
    while True:
        drawn = weighted(rng, kinds, [_KIND_WEIGHTS[k] for k in kinds])
        question = _MAKERS[drawn](scene, rng)
        if question:
            return question
        kinds.remove(drawn)


def majority_share(kind: Kind, *, split: Split = "heldout", scenes: int = 2000, seed: int = 0) -> float:
    """The share of the commonest answer of a type: what always giving that answer scores."""
    rng = np.random.default_rng(seed)
    questions = (ask(random_scene(rng, split), rng, kind) for _ in range(scenes))
    answers = Counter(question.answer for question in questions if question)
    return max(answers.values()) / answers.total()
