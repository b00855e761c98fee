"""Captions of scenes: the canonical one, the grammar, hard negatives, and the reader of mentions."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from tessera.data.worlds.scenes.captions import (
    STYLES,
    SWAPS,
    attribute_swap,
    canonical_caption,
    caption,
    count_patterns,
    hard_negative,
)
from tessera.data.worlds.scenes.graph import (
    COLOURS,
    PLACES,
    SHAPES,
    SIZES,
    TEXTURES,
    is_heldout,
    random_scene,
)
from tessera.data.worlds.scenes.mentions import mentioned_objects


def _full(scene):
    return Counter((o.colour, o.shape, o.place, o.size, o.texture) for o in scene.objects)


def _agree(mention, thing):
    said = (thing.colour, thing.shape, thing.place, thing.size, thing.texture)
    return all(m is None or m == t for m, t in zip(mention, said, strict=True))


def _covers(mentions, objects):
    """Whether the mentions can be given to the objects, one each, without contradiction."""
    if not mentions:
        return not objects
    return any(
        _agree(mentions[0], thing) and _covers(mentions[1:], objects[:i] + objects[i + 1 :])
        for i, thing in enumerate(objects)
    )


def test_canonical_caption_names_every_attribute_in_reading_order_and_depends_on_nothing_else():
    rng = np.random.default_rng(0)
    for _ in range(300):
        scene = random_scene(rng)
        text = canonical_caption(scene)
        expected = [(o.colour, o.shape, o.place, o.size, o.texture) for o in scene.reading_order()]
        assert mentioned_objects(text) == expected
        assert len(text.split()) <= 28
        back_to_front = replace(scene, objects=scene.objects[::-1], seed=scene.seed + 1)
        assert canonical_caption(back_to_front) == text


@pytest.mark.parametrize("style", STYLES)
def test_every_caption_is_read_back_exactly(style):
    rng = np.random.default_rng(1)
    for index in range(500):
        scene = random_scene(rng, "heldout" if index % 4 == 0 else "train", (0.2, 0.3, 0.25, 0.25))
        text = caption(scene, rng, style)
        mentions = mentioned_objects(text)
        assert len(mentions) == len(scene.objects), text
        assert _covers(mentions, list(scene.objects)), text
        if style in ("canonical", "dense"):
            assert Counter(mentions) == _full(scene), text


def test_the_reader_finds_each_place_that_a_short_caption_says():
    """A place word left over, or given to the wrong object, would show as a place too few."""
    rng = np.random.default_rng(2)
    for _ in range(600):
        scene = random_scene(rng, "train", (0.0, 0.4, 0.3, 0.3))
        mentions = mentioned_objects(caption(scene, rng, "short"))
        places = {mention[2] for mention in mentions}
        assert places in ({None}, {thing.place for thing in scene.objects})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A big red star is at the top.", [("red", "star", "top", "large", None)]),
        ("a star in blue and the green cross", [
            ("blue", "star", None, None, None), ("green", "cross", None, None, None)]),
        ("on the left is a pink circle, which is below a red star", [
            ("pink", "circle", "left", None, None), ("red", "star", None, None, None)]),
        ("a red star left of a blue circle. the red star is in the middle", [
            ("red", "star", "center", None, None), ("blue", "circle", None, None, None)]),
        ("nothing but a star and noise red red", []),
        ("", []),
    ],
)  # fmt: skip
def test_the_reader_is_tolerant_of_loose_words(text, expected):
    assert mentioned_objects(text) == expected


def _pattern(text):
    slots = {name: "_" for names in (COLOURS, SHAPES, SIZES) for name in names}
    slots |= {"stripes": "dots", "striped": "dotted", "plain": "dotted", "an": "a"}
    places = sorted(PLACES, key=len, reverse=True)
    text = re.sub(r"\b(light|dark) (plain|shaded|speckled|checked)\b", "GROUND", text)
    text = re.sub(r"\b(" + "|".join(places) + r"|middle)\b", "PLACE", text)
    return " ".join(slots.get(word, word) for word in re.findall(r"\w+|[.,;:]", text))


def test_the_grammar_holds_hundreds_of_sentence_patterns_and_draws_them():
    counts = count_patterns()
    assert counts["short"] >= 300 and counts["dense"] >= 300 and counts["relational"] >= 300
    rng = np.random.default_rng(3)
    scenes = [random_scene(rng, "train", (0.0, 1.0)) for _ in range(900)]
    for style in ("short", "dense", "relational"):
        assert len({_pattern(caption(scene, rng, style)) for scene in scenes}) >= 300


def test_a_relational_caption_says_relations_that_hold():
    rng = np.random.default_rng(4)
    checked, way = 0, r"(to the left of|above) (an? [^.]*)\.?$"
    for _ in range(600):
        scene = random_scene(rng, "train", (0.0, 1.0))
        text = caption(scene, rng, "relational")
        frame = r"^(?:there is |we see )?(an? .*?) (?:is |sits )?" + way
        found = re.search(frame, text)
        if found and "and to" not in text and len({(o.colour, o.shape) for o in scene.objects}) == 2:
            (a,), (b,) = mentioned_objects(found[1]), mentioned_objects(found[3])
            first, second = (next(o for o in scene.objects if (o.colour, o.shape) == m[:2]) for m in (a, b))
            if found[2] == "above":
                assert (first.column, first.row < second.row) == (second.column, True)
            else:
                assert (first.row, first.column < second.column) == (second.row, True)
            checked += 1
    assert checked > 20


def test_a_hard_negative_changes_one_attribute_of_one_object_and_is_false():
    rng = np.random.default_rng(5)
    changed = Counter()
    for _ in range(500):
        scene = random_scene(rng)
        true, false = (mentioned_objects(text) for text in hard_negative(scene, rng))
        assert _covers(true, list(scene.objects))
        assert not _covers(false, list(scene.objects))
        differences = [
            name
            for a, b in zip(true, false, strict=True)
            for name, x, y in zip(("colour", "shape", "place", "size", "texture"), a, b, strict=True)
            if x != y
        ]
        assert len(differences) == 1
        changed[differences[0]] += 1
        assert not any(is_heldout(*mention[:3]) for mention in false if mention[2])
    for name, share in SWAPS.items():
        assert abs(changed[name] / changed.total() - share) < 0.05


def test_a_swapped_training_object_never_becomes_a_heldout_combination():
    rng = np.random.default_rng(6)
    for _ in range(500):
        thing = random_scene(rng).objects[0]
        for attribute in ("colour", "shape", "place", "texture"):
            other = attribute_swap(thing, attribute, rng)
            assert getattr(other, attribute) != getattr(thing, attribute)
            assert not is_heldout(*other.triple)


def test_the_words_of_captions_are_american_and_lower_case():
    rng = np.random.default_rng(7)
    for index in range(400):
        text = caption(random_scene(rng), rng, STYLES[index % 4])
        assert text == text.lower() and "colour" not in text and "centre" not in text
        assert "  " not in text and "{" not in text
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text), text


assert set(TEXTURES) == {"plain", "striped", "dotted"}  # the patterns above are written for these
