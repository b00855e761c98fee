"""Captions of a scene: one canonical sentence, and a grammar in tables of short, dense and relational ones.

Sentences are lower case and spell as Americans do ("center"). Everything a caption says is true of its scene,
and `mentions.mentioned_objects` reads it back exactly.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from tessera.data.worlds.scenes.graph import COLOURS, PLACES, SHAPES, TEXTURES, Scene, SceneObject, is_heldout
from tessera.data.worlds.scenes.words import (
    GROUNDS,
    ITS_RELATIONS,
    NUMBERS,
    PATTERNS,
    PLACE_FORMS,
    RELATIONS,
    article,
    offset,
    pick,
    sequence,
    weighted,
)

Style = Literal["canonical", "short", "dense", "relational"]
STYLES: tuple[Style, ...] = get_args(Style)

# What a noun phrase may say beside colour and shape, and the forms that need it said.
EXTRAS: tuple[frozenset[str], ...] = (
    frozenset(),
    frozenset({"size"}),
    frozenset({"texture"}),
    frozenset({"size", "texture"}),
)
PHRASES: tuple[tuple[str, frozenset[str]], ...] = (
    ("{size} {texture} {colour} {shape}", frozenset()),
    ("{size} {texture} {shape} in {colour}", frozenset()),
    ("{size} {colour} {texture} {shape}", frozenset({"texture"})),
    ("{size} {colour} {shape} with {pattern}", frozenset({"texture"})),
    ("{texture} {colour} {shape} of {size} size", frozenset({"size"})),
)
OPENERS = (
    "", "", "a picture of ", "an image of ", "a drawing of ", "there is ", "here is ", "we see ",
    "you can see ", "this picture shows ", "the image has ", "a scene with ", "{count}: ",
    "a picture with {count}: ",
)  # fmt: skip
PLAIN_ITEM = "{np} {place}"
CLAUSES = (
    "{np} is {place}",
    "{np} sits {place}",
    "{place} is {np}",
    "{place} there is {np}",
    "{place}: {np}",
)
CLAUSE_OPENERS = ("", "", "in this picture ", "in the image ", "as drawn here, ")
JOINS = ((", ", " and "), (", ", ", "), (" and ", " and "), ("; ", "; "), (", ", ", and "), (". ", ". "))
ENDS = ("", ".")
BACKGROUNDS = (
    "{text} on {a_ground} background", "{text} in front of {a_ground} background",
    "{text}. the background is {ground}",
)  # fmt: skip
FRONT_BACKGROUNDS = ("on {a_ground} background, {text}", "{a_ground} background with {text}")  # no opener

UNARY = ("{a} is {place}", "{a} {place}", "{place} is {a}", "{place} there is {a}", "there is {a} {place}")
PAIRS = (
    "{a} {ab} {b}", "{a} is {ab} {b}", "{a} sits {ab} {b}", "there is {a} {ab} {b}", "we see {a} {ab} {b}",
    "{ab} {b} is {a}", "{ab} {b} there is {a}", "{b} with {a} {its}", "{b} has {a} {its}",
    "{b} and {its} {a}",
)  # fmt: skip
CHAINS = (
    "{a} is {ab} {b}, which is {bc} {c}", "{a} {ab} {b}, itself {bc} {c}", "{a} is {ab} {b} and {ac} {c}",
    "{a} sits {ab} {b}, which sits {bc} {c}", "{a} {ab} {b} and also {ac} {c}",
)  # fmt: skip
SENTENCE_JOINS = (". ", "; ", ", and ", ", ")
# How a relational caption groups its objects: 1 says a place, 2 and 3 say relations.
GROUPINGS = {1: ((1,),), 2: ((2,),), 3: ((2, 1), (3,)), 4: ((2, 2), (3, 1), (2, 1, 1))}


def noun_phrase(thing: SceneObject, extras: Iterable[str] = (), form: str = PHRASES[0][0]) -> str:
    """Colour and shape, with size and texture where `extras` names them; no article."""
    said = set(extras)
    words = form.format(
        colour=thing.colour,
        shape=thing.shape,
        size=thing.size if "size" in said else "",
        texture=thing.texture if "texture" in said else "",
        pattern=PATTERNS[thing.texture],
    )
    return " ".join(words.split())


def canonical_caption(scene: Scene) -> str:
    """The one caption of a scene: objects in reading order, each with size, texture, colour, shape and place.

    A pure function of the scene: at most 28 words for 4 objects.
    """
    return ", ".join(f"{article(noun_phrase(thing, EXTRAS[3]))} {thing.place}" for thing in scene.reading_order())


@dataclass(frozen=True, slots=True)
class ListPlan:
    """Every choice of a caption that lists its objects; rendering it draws nothing more."""

    order: tuple[int, ...]
    extras: frozenset[str]
    phrase: str
    item: str
    place_form: int
    opener: str
    join: tuple[str, str]
    end: str
    background: str = "{text}"


def _phrases(extras: frozenset[str]) -> list[str]:
    return [form for form, needs in PHRASES if needs <= extras]


def _order(scene: Scene, rng: np.random.Generator) -> tuple[int, ...]:
    """Reading order in half of the cases, else any order."""
    indices = range(len(scene.objects))
    if rng.random() < 0.5:
        return tuple(sorted(indices, key=lambda i: PLACES.index(scene.objects[i].place)))
    return tuple(int(i) for i in rng.permutation(len(scene.objects)))


def _list_plan(scene: Scene, rng: np.random.Generator, style: Style, must: str | None = None) -> ListPlan:
    """A plan for a short or dense caption; `must` names an attribute that it has to say."""
    dense = style == "dense"
    extras = EXTRAS[3] if dense else pick(rng, [e for e in EXTRAS if must != "texture" or "texture" in e])
    placed = dense or must == "place" or rng.random() < 0.6
    clausal = placed and rng.random() < 0.4
    background = pick(rng, BACKGROUNDS + FRONT_BACKGROUNDS) if dense else "{text}"
    opener = pick(rng, CLAUSE_OPENERS if clausal else OPENERS)
    return ListPlan(
        order=_order(scene, rng),
        extras=extras,
        phrase=pick(rng, _phrases(extras)),
        item=pick(rng, CLAUSES) if clausal else (PLAIN_ITEM if placed else "{np}"),
        place_form=int(rng.integers(len(PLACE_FORMS["left"]))),
        opener="" if background in FRONT_BACKGROUNDS else opener,
        join=pick(rng, JOINS),
        end=pick(rng, ENDS),
        background=background,
    )


def _render(plan: ListPlan, scene: Scene, objects: Sequence[SceneObject]) -> str:
    things = [objects[i] for i in plan.order]
    items = [
        plan.item.format(
            np=article(noun_phrase(t, plan.extras, plan.phrase)), place=PLACE_FORMS[t.place][plan.place_form]
        )
        for t in things
    ]
    count = f"{NUMBERS[len(things)]} {'object' if len(things) == 1 else 'objects'}"
    text = plan.opener.format(count=count) + sequence(items, *plan.join)
    ground = f"{scene.tone} {GROUNDS[scene.background]}"
    return plan.background.format(text=text, ground=ground, a_ground=article(ground)) + plan.end


def _relational(scene: Scene, rng: np.random.Generator) -> str:
    extras = pick(rng, EXTRAS)
    phrase = pick(rng, _phrases(extras))
    queue = [scene.objects[i] for i in rng.permutation(len(scene.objects))]
    sentences = []
    for size in pick(rng, GROUPINGS[len(queue)]):
        group, queue = queue[:size], queue[size:]
        sentences.append(_relate(group, rng, [article(noun_phrase(t, extras, phrase)) for t in group]))
    join = pick(rng, SENTENCE_JOINS)
    return sequence(sentences, join, join) + pick(rng, ENDS)


def _relate(group: Sequence[SceneObject], rng: np.random.Generator, names: Sequence[str]) -> str:
    """One sentence that places one object, or relates two or three."""
    words = dict(zip("abc", names, strict=False))
    words["place"] = pick(rng, PLACE_FORMS[group[0].place])
    for first, second in ((0, 1), (1, 2), (0, 2)):
        if second < len(group):
            key = offset(group[first], group[second])
            words["abc"[first] + "abc"[second]] = pick(rng, RELATIONS[key])
            words["its"] = words.get("its") or pick(rng, ITS_RELATIONS[key])
    return pick(rng, (UNARY, PAIRS, CHAINS)[len(group) - 1]).format(**words)


def caption(scene: Scene, rng: np.random.Generator, style: Style = "short") -> str:
    """A true sentence about the scene.

    Args:
        style: "canonical"; "short" (every colour and shape, some of the rest); "dense" (everything,
            the background too); "relational" (every colour and shape, relations of pairs, places of the
            rest).
    """
    if style == "canonical":
        return canonical_caption(scene)
    if style == "relational":
        return _relational(scene, rng)
    return _render(_list_plan(scene, rng, style), scene, scene.objects)


# Chances of the swaps of `hard_negative`: shape is what models learn last.
SWAPS = {"shape": 0.5, "colour": 0.2, "place": 0.15, "texture": 0.15}
_NAMES = {"shape": SHAPES, "colour": COLOURS, "place": PLACES, "texture": TEXTURES}


def attribute_swap(thing: SceneObject, attribute: str, rng: np.random.Generator) -> SceneObject:
    """The object with one attribute renamed (its geometry stays: only its words are of use).

    A training combination never becomes a held-out one: else a contrastive loss would teach that those never
    occur.
    """
    while True:
        name = pick(rng, _NAMES[attribute])
        other = replace(thing, **{attribute: name})  # type: ignore[arg-type]
        if name != getattr(thing, attribute) and (is_heldout(*thing.triple) or not is_heldout(*other.triple)):
            return other


def hard_negative(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    """A true caption, and the same sentence made false by one attribute word (two words for some places).

    All objects of the caption are described to the same extent, so the changed list of descriptions cannot
    fit the scene in another order.
    """
    attribute = weighted(rng, list(SWAPS), list(SWAPS.values()))
    plan = _list_plan(scene, rng, pick(rng, ("short", "short", "dense")), must=attribute)
    objects = list(scene.objects)
    index = int(rng.integers(len(objects)))
    objects[index] = attribute_swap(objects[index], attribute, rng)
    return _render(plan, scene, scene.objects), _render(plan, scene, objects)


def count_patterns() -> dict[str, int]:
    """How many different sentence patterns the tables hold for a scene of two objects, by style.

    A pattern is a sentence with its attribute words left open; orders of the objects are not counted.
    """
    phrases = [len(_phrases(extras)) for extras in EXTRAS]
    places = len(PLACE_FORMS["left"])
    finish = len({last for _, last in JOINS}) * len(ENDS)  # with two objects only the last join is used
    listed, clausal = len(set(OPENERS)), len(set(CLAUSE_OPENERS)) * len(CLAUSES) * places
    items = places + len(CLAUSES) * places
    short = sum(phrases) * (listed * (1 + places) + clausal)
    dense = phrases[3] * ((listed * places + clausal) * len(BACKGROUNDS) + items * len(FRONT_BACKGROUNDS))
    relations = (len(PAIRS) - 3) * len(RELATIONS[0, 1]) + 3 * len(ITS_RELATIONS[0, 1])
    return {
        "canonical": 1,
        "short": short * finish,
        "dense": dense * finish,
        "relational": sum(phrases) * relations * len(ENDS),
    }
