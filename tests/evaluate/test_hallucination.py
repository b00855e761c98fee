"""Probes of what is not there, scores of yes-no answers, and calibration, against cases worked by hand."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from tessera.data.worlds.scenes import Scene, ScenesWorld
from tessera.data.worlds.scenes.graph import place_object
from tessera.data.worlds.scenes.words import article
from tessera.errors import UserError
from tessera.evaluate.calibration import expected_calibration_error
from tessera.evaluate.hallucination import (
    OBJECTS,
    QUESTION,
    STRATEGIES,
    absent_mentions,
    chair,
    evaluate_chair,
    evaluate_probes,
    present,
    probe_scenes,
    probe_world,
    says_yes,
    yes_no,
)
from tessera.evaluate.scenes_suite import SEED


def scene(*things):
    rng = np.random.default_rng(0)
    places = ("top left", "top", "top right", "left")
    objects = [place_object(rng, *thing.split(), place) for thing, place in zip(things, places, strict=False)]
    return Scene(tuple(objects), "plain", "light", 0)


def absents(scenes, strategy, **options):
    found = {}
    for probe in probe_scenes(scenes, strategy, **options):
        if probe.answer == "no":
            found.setdefault(probe.picture, []).append(probe.thing)
    return found


SCENES = [
    scene("red star"),
    scene("red star", "blue cross"),
    scene("red star", "blue cross"),
    scene("pink circle", "green square", "blue cross"),
    scene("pink circle"),
    scene("pink circle"),
    scene("pink circle"),
]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_yes_and_no_are_as_many_and_each_is_true_of_its_picture(strategy):
    world = ScenesWorld(heldout_pictures=40)
    scenes = [world.scene("heldout", number) for number in range(40)]
    probes = probe_scenes(scenes, strategy)
    assert Counter(one.answer for one in probes)["yes"] * 2 == len(probes)
    for probe in probes:
        assert (probe.thing in present(scenes[probe.picture])) == (probe.answer == "yes")
    assert len({(one.picture, one.thing) for one in probes}) == len(probes)
    assert max(Counter(one.picture for one in probes).values()) == 6


def test_popular_absents_are_the_most_frequent_that_are_not_there():
    found = absents(SCENES, "popular")
    assert found[0] == ["pink circle"]  # in four pictures; the red star and the blue cross in three
    assert found[4] == ["red star"]  # as frequent as the blue cross, and before it in the list
    assert found[1] == ["pink circle", "green square"]


def test_adversarial_absents_are_those_seen_with_what_is_there():
    found = absents(SCENES, "adversarial")
    assert found[0] == ["blue cross"]  # twice with a red star
    assert found[4] == ["green square"]  # once with a pink circle, as the blue cross is
    assert found[1][0] == "green square"  # with the blue cross; so is the pink circle


def test_random_absents_follow_the_seed_and_reach_all_objects():
    scenes = [scene("red star")] * 600
    first, same, other = (absents(scenes, "random", seed=seed) for seed in (1, 1, 2))
    assert first == same != other
    assert {thing for some in first.values() for thing in some} == set(OBJECTS) - {"red star"}


def test_two_objects_of_one_name_are_asked_about_once():
    probes = probe_scenes([scene("red star", "red star")], "random")
    assert [one.answer for one in probes] == ["yes", "no"]
    assert probes[0].text == "is there a red star?"
    assert probe_scenes([scene("orange star")], "random")[0].text == "is there an orange star?"


def test_probes_of_the_world_are_samples_with_their_picture():
    world = ScenesWorld(heldout_pictures=5)
    samples = probe_world(world, strategy="adversarial", pictures=5)
    assert {one.meta["type"] for one in samples} == {"adversarial"}
    for sample in samples:
        here = present(world.scene("heldout", sample.meta["picture"]))
        assert sample.meta["answer"] == ("yes" if sample.meta["thing"] in here else "no")
        assert sample.images[0].key == f"scenes/heldout/{sample.meta['picture']}"
    with pytest.raises(UserError, match="'heldout' has 5 pictures, not 6"):
        probe_world(world, pictures=6)
    with pytest.raises(UserError, match="no strategy 'popula'; did you mean 'popular'"):
        probe_scenes(SCENES, "popula")
    with pytest.raises(UserError, match="each is 0"):
        probe_scenes(SCENES, "random", each=0)


@pytest.mark.parametrize(
    ("answer", "yes"),
    [
        ("Yes", True), ("yes, there is no doubt", False), ("No.", False), ("There is not. Yes", False),
        ("Yes. Not a doubt", True), ("nothing", True), ("NO", False), ("", True),
    ],
)  # fmt: skip
def test_an_answer_is_read_as_pope_reads_it(answer, yes):
    assert says_yes(answer) is yes


def test_the_scores_by_hand():
    found = yes_no([True] * 8 + [False] * 2, [True] * 5 + [False] * 3 + [False, True])
    assert found.accuracy.value == pytest.approx(0.6)
    assert (found.precision.value, found.precision.n) == (pytest.approx(5 / 8), 8)
    assert (found.recall.value, found.recall.n) == (pytest.approx(5 / 6), 6)
    assert found.f1.value == pytest.approx(10 / 14)
    assert found.yes_share.value == pytest.approx(0.8)
    for one in (found.accuracy, found.precision, found.recall, found.f1, found.yes_share):
        assert one.low < one.value < one.high
    assert found.to_json()["yes_share"]["n"] == 10


def test_what_has_no_denominator_is_none_and_lists_of_different_length_are_refused():
    assert yes_no([False, False], [True, False]).precision is None
    assert yes_no([False, False], [True, False]).f1.value == 0
    only_no = yes_no([True, False], [False, False])
    assert only_no.recall is None and only_no.f1 is None
    with pytest.raises(UserError, match="2 answers and 1 truths"):
        yes_no([True, False], [True])


def test_the_calibration_error_by_hand():
    sure = [0.95, 0.95, 0.95, 0.95, 0.55, 0.55]
    right = [1, 1, 1, 0, 1, 0]
    found = expected_calibration_error(sure, right)
    assert found.value == pytest.approx((4 * 0.2 + 2 * 0.05) / 6)
    assert found.low <= found.value <= found.high
    assert expected_calibration_error([1.0, 1.0, 0.0], [1, 1, 0]).value == 0


def test_each_bin_has_its_upper_end():
    # 0.5 is of the fifth bin, with 0.41: one right of two at 0.455; in the sixth it would be 0.5 and 0.41 apart
    assert expected_calibration_error([0.5, 0.41], [1, 0]).value == pytest.approx(abs(0.5 - 0.455))


def test_confidences_are_probabilities_and_not_scores():
    with pytest.raises(UserError, match="a confidence of 1.5 is no probability"):
        expected_calibration_error([0.5, 1.5], [1, 0])
    with pytest.raises(UserError, match="2 confidences and 1 answers"):
        expected_calibration_error([0.5, 0.6], [1])
    spread = np.random.default_rng(0).uniform(size=4000)
    hits = np.random.default_rng(1).uniform(size=4000) < spread
    assert expected_calibration_error(spread, hits).value < 0.03


class Knows:
    """Knows what is in each picture of the suite, by its pixels; or says yes to everything."""

    def __init__(self, *, blind=False):
        self.blind = blind
        world = ScenesWorld(seed=SEED, heldout_pictures=6)
        self.there = {
            world.image("heldout", number).pil().tobytes(): present(world.scene("heldout", number))
            for number in range(6)
        }

    def answer(self, images, questions):
        shown = [{QUESTION.format(a=article(thing)) for thing in self.there[image.tobytes()]} for image in images]
        return ["Yes." if self.blind or asked in here else "No." for asked, here in zip(questions, shown, strict=True)]


def test_the_suite_gives_full_marks_to_who_knows_and_half_to_who_agrees_with_everything():
    for blind, right in ((False, 1.0), (True, 0.5)):
        result = evaluate_probes(Knows(blind=blind), 6)
        for strategy in STRATEGIES:
            assert result.scores[f"{strategy}: accuracy"].value == right
            assert result.scores[f"{strategy}: yes share"].value == (1.0 if blind else 0.5)
        assert len(result.answers) == sum(score.n for name, score in result.scores.items() if "accuracy" in name)


@pytest.mark.parametrize(
    ("caption", "counts"),
    [
        ("a red star and a blue cross", (0, 2)),
        ("a red star and a green circle", (1, 2)),
        ("a red cross", (1, 1)),  # colour and shape are both there, but of two objects
        ("a red star, a red star and a red star", (0, 3)),  # too many of what is there
        ("a pink circle. the pink circle is at the top", (1, 1)),  # the same mention again
        ("an orange star, a pink circle and a blue cross at the top right.", (2, 3)),
        ("a large striped red star with dots, left of a small star", (0, 1)),  # of no colour: no object
        ("nothing at all", (0, 0)),
        ("", (0, 0)),
    ],
)
def test_objects_named_and_not_there_by_hand(caption, counts):
    assert absent_mentions(caption, scene("red star", "blue cross")) == counts


def test_chair_by_hand():
    scenes = [scene("red star"), scene("red star", "blue cross"), scene("pink circle"), scene("pink circle")]
    said = ["a red star and a green square", "a blue cross, a red star", "a green square, a red star", "hm"]
    found = chair(said, scenes)
    assert found.chair_i.value == pytest.approx(3 / 6)
    assert (found.chair_s.value, found.chair_s.n) == (pytest.approx(2 / 4), 4)
    assert found.named.value == pytest.approx(6 / 4)
    for one in (found.chair_i, found.chair_s, found.named):
        assert one.low < one.value < one.high


def test_true_captions_name_nothing_that_is_not_there_and_silence_has_no_share():
    world = ScenesWorld(train_pictures=200)
    source = world.source("pairs")
    pairs = [source[number] for number in range(200)]
    found = chair([one.text for one in pairs], [one.meta["scene"] for one in pairs])
    assert found.chair_i.value == found.chair_s.value == 0 and found.named.value > 1
    assert chair(["", "hm"], SCENES[:2]).chair_i is None
    with pytest.raises(UserError, match="1 captions and 2 scenes"):
        chair([""], SCENES[:2])


def test_the_suite_captions_held_out_pictures():
    class Says:
        def __init__(self, text):
            self.text = text

        def caption(self, images):
            return [self.text] * len(images)

    found = evaluate_chair(Says("a red star"), 20)
    here = [present(ScenesWorld(seed=SEED, heldout_pictures=20).scene("heldout", number)) for number in range(20)]
    wrong = sum("red star" not in some for some in here) / 20
    rates = [score.value for name, score in found.scores.items() if name.startswith("CHAIR")]
    assert rates == [pytest.approx(wrong)] * 2 and len(found.captions) == 20
    assert not any(name.startswith("CHAIR_i") for name in evaluate_chair(Says("hm"), 3).scores)
