"""Questions, referring phrases, edits and pages: answers right, balanced, and true to their split."""

from __future__ import annotations

import re
from collections import Counter, defaultdict

import numpy as np
import pytest

from tessera.data.worlds.scenes.draw import draw, object_masks
from tessera.data.worlds.scenes.edits import KINDS as EDIT_KINDS
from tessera.data.worlds.scenes.edits import SAFE_KINDS, change, edit
from tessera.data.worlds.scenes.graph import Scene, is_heldout, place_object, random_scene
from tessera.data.worlds.scenes.pages import PAGE_KINDS, Shown, page
from tessera.data.worlds.scenes.questions import KINDS, ask, majority_share
from tessera.data.worlds.scenes.referring import identifying, refer, refer_to_any


def _scene(*objects):
    """A scene of (size, texture, colour, shape, place)."""
    from dataclasses import replace

    rng = np.random.default_rng(0)
    things = [
        replace(place_object(rng, colour, shape, place), size=size, texture=texture)
        for size, texture, colour, shape, place in objects
    ]
    return Scene(tuple(things), "plain", "light", 0)


THREE = _scene(
    ("large", "plain", "red", "star", "top left"),
    ("small", "striped", "blue", "circle", "right"),
    ("small", "dotted", "red", "circle", "bottom"),
)

# What can be asked of THREE and has to be answered so, whichever way it comes up.
HAND = {
    "is there a star?": "yes", "is there a square?": "no", "is there a red circle?": "yes",
    "is there a blue star?": "no", "how many objects are there?": "three",
    "how many circles are there?": "two",
    "how many red objects are there?": "two", "how many large objects are there?": "one",
    "how many crosses are there?": "zero", "what color is the star?": "red",
    "what shape is the striped object?": "circle", "where is the star?": "top left",
    "where is the blue circle?": "right", "is the star left of the blue object?": "yes",
    "is the star below the blue object?": "no", "is the star above the blue object?": "yes",
    "what is right of the dotted object?": "blue circle", "what is above the blue object?": "red star",
    "are there more circles than stars?": "yes", "are there more stars than circles?": "no",
    "is the star larger than the blue object?": "yes", "is the striped object larger than the star?": "no",
    "do the star and the striped object have the same color?": "no",
    "do the star and the dotted object have the same color?": "yes",
}  # fmt: skip


def test_answers_about_a_hand_made_scene_are_right():
    rng = np.random.default_rng(0)
    seen = {}
    for _ in range(3000):
        question = ask(THREE, rng)
        if question.text in HAND:
            assert question.answer == HAND[question.text], question
            seen[question.text] = question.answer
    assert len(seen) >= 12


_THING = re.compile(
    r"(?:an?|the) (?:(small|large) )?(?:(plain|striped|dotted) )?(?:(\w+) )?(object|\w+)"
    r"(?: (?:at|in|on|near|right in) the (.*))?$"
)


def test_existence_answers_agree_with_the_scene_read_anew():
    rng = np.random.default_rng(1)
    for _ in range(700):
        scene = random_scene(rng)
        question = ask(scene, rng, "existence")
        words = question.text.rstrip("?")
        for frame in ("is there ", "can you see ", "does the picture show ", "is "):
            words = words.removeprefix(frame)
        size, texture, colour, shape, place = _THING.match(words.removesuffix(" in the picture")).groups()
        place = place and re.sub(r" (corner|edge|side)$", "", place).replace("middle", "center")
        wanted = {"size": size, "texture": texture, "colour": colour, "place": place}
        wanted["shape"] = None if shape == "object" else shape
        there = any(all(v is None or getattr(o, k) == v for k, v in wanted.items()) for o in scene.objects)
        assert question.answer == ("yes" if there else "no"), (question, scene)


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_yes_and_no_are_balanced_in_every_type(split):
    """The answer is a fair coin by construction, so the share must lie within the noise of 2,000 tosses."""
    rng = np.random.default_rng(2)
    scenes = [random_scene(rng, split, (0.2, 0.3, 0.25, 0.25)) for _ in range(700)]
    for kind in ("existence", "relation", "comparison"):
        answers = Counter()
        while answers["yes"] + answers["no"] < 2000:
            question = ask(scenes[int(rng.integers(len(scenes)))], rng, kind)
            if question:
                answers[question.answer] += 1
        assert abs(answers["yes"] / (answers["yes"] + answers["no"]) - 0.5) < 0.02, (kind, answers)


def test_no_form_of_a_yes_no_question_gives_its_answer_away():
    rng = np.random.default_rng(3)
    answers = defaultdict(Counter)
    for _ in range(2500):
        question = ask(random_scene(rng, "train", (0.2, 0.4, 0.2, 0.2)), rng, "comparison")
        answers[question.form][question.answer] += 1
    assert len(answers) == 6
    for form, counts in answers.items():
        assert counts.total() > 70, form
        assert 0.38 < counts["yes"] / counts.total() < 0.62, (form, counts)


@pytest.mark.parametrize(("kind", "most"), [
    ("existence", 0.54), ("count", 0.4), ("colour", 0.2), ("shape", 0.25), ("place", 0.2), ("relation", 0.4),
    ("comparison", 0.54),
])  # fmt: skip
def test_always_giving_the_commonest_answer_scores_little(kind, most):
    assert majority_share(kind, scenes=700) < most


def test_a_type_that_a_scene_has_not_is_refused_and_never_drawn():
    rng = np.random.default_rng(4)
    one = _scene(("small", "plain", "red", "star", "top"))
    twins = _scene(("small", "plain", "red", "star", "top"), ("small", "plain", "red", "star", "left"))
    for scene in (one, twins):
        assert ask(scene, rng, "relation") is None
        assert "relation" not in {ask(scene, rng).kind for _ in range(300)}
    assert ask(twins, rng, "place") is None
    assert {ask(THREE, rng).kind for _ in range(300)} == set(KINDS)


def test_answers_are_one_to_three_words():
    rng = np.random.default_rng(5)
    for _ in range(1000):
        assert 1 <= len(ask(random_scene(rng), rng).answer.split()) <= 3


def test_a_referring_phrase_fits_exactly_one_object():
    rng = np.random.default_rng(6)
    related = 0
    for _ in range(700):
        scene = random_scene(rng, "train", (0.1, 0.3, 0.3, 0.3))
        named = refer_to_any(scene, rng)
        assert [i for i in range(len(scene.objects)) if named.fits(scene, i)] == [named.index]
        thing = scene.objects[named.index]
        for name in ("size", "texture", "colour", "shape"):
            assert name not in named.said or re.search(rf"\b{getattr(thing, name)}\b", named.phrase)
        related += named.relation is not None
    assert related > 70


def test_identifying_attributes_are_minimal_and_keep_out_what_is_forbidden():
    assert set(identifying(THREE, 0)) == {("size",), ("texture",), ("shape",), ("place",)}
    assert set(identifying(THREE, 2)) == {("texture",), ("place",), ("size", "colour"), ("colour", "shape")}
    assert refer(_scene(("small", "plain", "red", "star", "top"), ("small", "plain", "red", "star", "left")),
                 0, np.random.default_rng(0), without=("place",)) is None  # fmt: skip


def _attributes(thing):
    return thing.size, thing.texture, thing.colour, thing.shape, thing.place


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_an_edit_changes_one_object_and_keeps_to_its_split(split):
    rng = np.random.default_rng(7)
    kinds = Counter()
    for _ in range(800):
        scene = random_scene(rng, split)
        made = edit(scene, rng, split)
        kinds[made.kind if made.possible else made.reason] += 1
        if not made.possible:
            assert made.before == scene and made.reply
            continue
        before, after = (Counter(map(_attributes, s.objects)) for s in (made.before, made.after))
        lost, gained = list((before - after).elements()), list((after - before).elements())
        assert (len(lost), len(gained)) == {"add": (0, 1), "remove": (1, 0)}.get(made.kind, (1, 1))
        if lost and gained:
            assert sum(a != b for a, b in zip(lost[0], gained[0], strict=True)) == 1
        places = [thing.place for thing in made.after.objects]
        assert len(set(places)) == len(places) <= 4
        held = [is_heldout(*thing.triple) for thing in (*made.before.objects, *made.after.objects)]
        if split == "train":
            assert not any(held)
        else:
            assert all(is_heldout(*thing.triple) for thing in made.after.objects)
            assert sum(not is_heldout(*thing.triple) for thing in made.before.objects) <= 1
    assert set(kinds) == {*EDIT_KINDS, "absent", "taken"}
    assert 0.1 < (kinds["absent"] + kinds["taken"]) / kinds.total() < 0.2


def test_an_impossible_edit_says_the_truth():
    rng = np.random.default_rng(8)
    reasons = Counter()
    while reasons.total() < 200:
        scene = random_scene(rng)
        made = edit(scene, rng, "train")
        if made.reason == "absent":
            name = re.search(r"no (?:(\w+) )?(\w+)(?: in the picture| here|$)", made.reply)
            assert not any((name[1] or o.colour, name[2]) == (o.colour, o.shape) for o in scene.objects)
        elif made.reason == "taken":
            assert any(thing.place in made.reply for thing in scene.objects)
        reasons[made.reason] += made.reason is not None
    assert reasons["absent"] > reasons["taken"] > 20


def test_an_edit_leaves_the_pixels_of_everything_else_alone():
    rng = np.random.default_rng(9)
    for kind in SAFE_KINDS:
        made = change(_scene(*map(_attributes, THREE.objects)), rng, kind, "train")
        touched = np.zeros((64, 64), bool)
        for scene, thing in ((made.before, made.old), (made.after, made.new)):
            if thing is not None:
                touched |= object_masks(scene)[scene.objects.index(thing)]
        grown = np.pad(touched, 2)
        near = np.any([grown[i : i + 64, j : j + 64] for i in range(5) for j in range(5)], axis=0)
        same = (draw(made.before) == draw(made.after)).all(axis=-1)
        assert same[~near].all() and not same.all()


@pytest.mark.parametrize("split", ["train", "heldout"])
@pytest.mark.parametrize("kind", PAGE_KINDS)
def test_a_page_ties_two_to_five_pictures_of_one_split_with_words(split, kind):
    rng = np.random.default_rng(10)
    for _ in range(80):
        made = page(Shown(random_scene(rng, split), 0), lambda: Shown(random_scene(rng, split), 1), rng, split, kind)
        assert made.kind == kind and 2 <= len(made.scenes) <= 5
        for part, following in zip(made.parts, made.parts[1:], strict=False):
            assert isinstance(part, str) or isinstance(following, str)
        for part in made.parts:
            assert not isinstance(part, str) or (part and "{" not in part)
        for scene in made.scenes:
            assert all(is_heldout(*thing.triple) == (split == "heldout") for thing in scene.objects)
