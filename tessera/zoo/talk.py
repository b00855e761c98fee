"""Dialogues about a scene as people hold them: questions in other words than the scenes world's own, and between them
requests for captions and questions that the world does not ask.

What is asked in one form alone is known in that form alone: a model that has met captions only as a first turn, and
questions only as "what color is the star?", says "yes" to a request for a caption in the middle of a dialogue, and a
caption to "What colour is the star?".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tessera.data.sample import Image, Sample, Text
from tessera.data.tasks import CAPTION_REQUESTS, chat, pick
from tessera.data.worlds.scenes.captions import STYLES, caption
from tessera.data.worlds.scenes.graph import PLACES, Scene
from tessera.data.worlds.scenes.referring import describe, refer
from tessera.data.worlds.scenes.words import PLACE_FORMS, article, sequence
from tessera.errors import BadSample

REQUESTS = (
    *CAPTION_REQUESTS, "Describe the picture.", "describe this image", "What is in the picture?", "What can you see?",
    "what is shown here?", "Tell me about the picture.", "Can you describe what you see?", "Caption it, please.",
)  # fmt: skip
DETAILED = ("Describe the picture in detail.", "tell me everything that you see", "Give a detailed description.")
BRIEF = tuple(style for style in STYLES if style != "dense")
LISTS = {
    "colour": ("which colors do you see?", "what colors are in the picture?", "name the colors."),
    "shape": ("which shapes do you see?", "what shapes are in the picture?", "name the shapes."),
}
SIZED = ("is {the} large or small?", "how big is {the}?", "what size is {the}?")
PATTERNED = ("what pattern does {the} have?", "is {the} plain, striped or dotted?", "how is {the} patterned?")
PLACED = ("what is {place}?", "what do you see {place}?", "which object is {place}?")
MORE = ("tell me more about {the}.", "describe {the}.", "what can you say about {the}?")
ELSEWHERE = (
    "a dog", "a cat", "an elephant", "a house", "a tree", "a person", "a car", "a face", "a flower", "a bird",
    "a heart", "a number", "text", "water", "an animal",
)  # fmt: skip
ABSENT = ("is there {a}?", "can you see {a}?", "does the picture show {a}?")
BEGINNINGS = ("tell me: ", "please tell me, ", "now, ", "and ", "look closely: ")
ENDINGS = (" in the picture", " here", " in this image", " in it")
REWORDED = 0.6  # of the questions are said anew

Turn = tuple[str, str]


def talk(sample: Sample, rng: np.random.Generator) -> Sample:
    """A conversation about a scene, some of its questions in other words, and up to two other turns among them.

    Raises:
        BadSample: the sample is no conversation about a picture of the scenes world.
    """
    scene, (image, *turns) = sample.meta.get("scene"), sample.segments
    if not isinstance(scene, Scene) or not isinstance(image, Image) or len(turns) % 2:
        raise BadSample("only a conversation about a picture of the scenes world can be held in other words")
    said = [turn.text for turn in turns if isinstance(turn, Text)]
    asked = list(zip(said[::2], said[1::2], strict=True))
    for number in rng.choice(len(OTHERS), 2, p=list(OTHERS.values())):
        asked.insert(int(rng.integers(len(asked) + 1)), list(OTHERS)[number](scene, rng))
    words: list[Text] = []
    for question, answer in asked:
        words += [Text(reworded(question, rng), False, "user"), Text(answer, role="assistant")]
    return chat(Sample((image, *words), id=sample.id, meta=sample.meta))


def reworded(text: str, rng: np.random.Generator) -> str:
    """A question as somebody else might put it, or as it is."""
    if rng.random() >= REWORDED:
        return text
    if rng.random() < 0.5:
        text = text.replace("color", "colour")
    if rng.random() < 0.3 and text.endswith("?") and "picture" not in text:
        text = text.removesuffix("?") + pick(ENDINGS, rng) + "?"
    if rng.random() < 0.2:
        text = pick(BEGINNINGS, rng) + text
    if rng.random() < 0.15:
        text = text.removesuffix("?").removesuffix(".")
    return text[0].upper() + text[1:] if rng.random() < 0.7 else text


def _captioned(scene: Scene, rng: np.random.Generator) -> Turn:
    if rng.random() < 0.2:
        return pick(DETAILED, rng), caption(scene, rng, "dense")
    return pick(REQUESTS, rng), caption(scene, rng, BRIEF[int(rng.integers(len(BRIEF)))])


def _listed(scene: Scene, rng: np.random.Generator) -> Turn:
    name = ("colour", "shape")[int(rng.integers(2))]
    found = dict.fromkeys(getattr(thing, name) for thing in scene.reading_order())
    return pick(LISTS[name], rng), sequence(list(found))


def _sized(scene: Scene, rng: np.random.Generator) -> Turn:
    return _of_one(scene, rng, "size", SIZED)


def _patterned(scene: Scene, rng: np.random.Generator) -> Turn:
    return _of_one(scene, rng, "texture", PATTERNED)


def _of_one(scene: Scene, rng: np.random.Generator, name: str, texts: Sequence[str]) -> Turn:
    """What one object is, asked without saying it; a caption where no object can be named so."""
    index = int(rng.integers(len(scene.objects)))
    named = refer(scene, index, rng, without=(name,))
    if named is None:
        return _captioned(scene, rng)
    return pick(texts, rng).format(the=named.phrase), getattr(scene.objects[index], name)


def _placed(scene: Scene, rng: np.random.Generator) -> Turn:
    """What lies at a place, often one where nothing does."""
    there = {thing.place: thing for thing in scene.objects}
    place = pick(list(there) if rng.random() < 0.7 else PLACES, rng)
    question = pick(PLACED, rng).format(place=pick(PLACE_FORMS[place][:-1], rng))
    return question, f"{there[place].colour} {there[place].shape}" if place in there else "nothing"


def _more(scene: Scene, rng: np.random.Generator) -> Turn:
    index = int(rng.integers(len(scene.objects)))
    named, thing = refer(scene, index, rng), scene.objects[index]
    assert named is not None  # its place, if nothing else, is its own
    said = article(describe(thing, ("size", "texture", "colour", "shape"), rng))
    return pick(MORE, rng).format(the=named.phrase), f"{said} {PLACE_FORMS[thing.place][0]}"


def _absent(scene: Scene, rng: np.random.Generator) -> Turn:
    return pick(ABSENT, rng).format(a=pick(ELSEWHERE, rng)), "no"


# What else is asked, and how often.
OTHERS: dict[Callable[[Scene, np.random.Generator], Turn], float] = {
    _captioned: 0.4, _listed: 0.15, _sized: 0.1, _patterned: 0.1, _placed: 0.1, _more: 0.1, _absent: 0.05,
}  # fmt: skip
