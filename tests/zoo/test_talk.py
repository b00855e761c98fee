"""Dialogues in other words keep their answers, and what is put between them is true of the scene."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from tessera.data.sample import Sample, Text
from tessera.data.worlds import open_world
from tessera.data.worlds.scenes.mentions import mentioned_objects
from tessera.errors import BadSample
from tessera.zoo.talk import OTHERS, reworded, talk

SOURCE = open_world("scenes").source("conversations")


def turns(sample: Sample) -> list[tuple[str, str]]:
    said = [one.text for one in sample.segments if isinstance(one, Text)]
    return list(zip(said[::2], said[1::2], strict=True))


def as_asked(question: str) -> str:
    """What is left of a question when it has been reworded: its words, without what rewording adds or changes."""
    return question.lower().replace("colour", "color").rstrip("?.")


def test_each_question_keeps_its_answer_in_its_order() -> None:
    for index in range(60):
        sample = SOURCE[index]
        told = iter(turns(talk(sample, np.random.default_rng(index))))
        for question, answer in turns(sample):
            assert any(as_asked(question) in as_asked(other) and answer == said for other, said in told), question


@pytest.mark.parametrize("other", OTHERS, ids=lambda other: other.__name__)
def test_what_else_is_asked_has_a_true_answer(other) -> None:
    met = Counter[str]()
    for index in range(80):
        scene = SOURCE[index].meta["scene"]
        question, answer = other(scene, np.random.default_rng(index))
        things = scene.objects
        whole = {(one.colour, one.shape) for one in things}
        said = {(colour, shape) for colour, shape, *_ in mentioned_objects(answer)}
        values = {getattr(one, name) for one in things for name in ("colour", "shape", "size", "texture")}
        if answer in ("nothing", "no"):
            kind = answer
        elif said:
            kind = "all" if said == whole and len(whole) > 1 else "some"
            assert said <= whole, (question, answer)
        else:
            kind = "words"
            assert set(answer.replace(" and ", ", ").split(", ")) <= values, (question, answer)
        met[kind] += 1
    wanted = {
        "_captioned": {"all", "some"}, "_listed": {"words"}, "_absent": {"no"}, "_placed": {"some", "nothing"},
        "_more": {"some"}, "_sized": {"words"}, "_patterned": {"words"},
    }[other.__name__]  # fmt: skip
    assert wanted <= set(met)


def test_roles_alternate_and_only_answers_are_learned() -> None:
    sample = talk(SOURCE[3], np.random.default_rng(0))
    words = [one for one in sample.segments if isinstance(one, Text)]
    assert [one.role for one in words] == ["user", "assistant"] * (len(words) // 2)
    assert [one.learned for one in words] == [False, True] * (len(words) // 2)
    assert not sample.images[0].learned and len(words) > len(SOURCE[3].segments) - 1


def test_a_question_is_said_in_many_ways_and_at_times_as_it_is() -> None:
    said = {reworded("what color is the star?", np.random.default_rng(seed)) for seed in range(200)}
    assert {"what color is the star?", "What colour is the star?"} < said
    assert len(said) > 20


def test_what_is_no_conversation_about_a_scene_is_refused() -> None:
    with pytest.raises(BadSample, match="only a conversation about a picture of the scenes world"):
        talk(Sample((Text("hello"),)), np.random.default_rng(0))
