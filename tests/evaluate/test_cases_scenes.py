"""Cases made from the scenes world: what leaks, what does not, and what is written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PIL

from tessera.errors import UserError
from tessera.evaluate.cases import read_cases
from tessera.evaluate.cases.scenes import (
    CLASSES,
    OPTIONS,
    one_object_world,
    scene_case,
    write_scene_cases,
)

WORLD = one_object_world(3, 1, 300)
LEAKS = (0.0, 0.25, 0.5, 1.0)


def told(leak: float, index: int) -> set[str]:
    """The words of the class that the note says."""
    case = scene_case(WORLD, "heldout", index, leak)
    return set(case.options[case.answer].split()) & set(case.question.replace(",", "").split())


def test_a_note_says_what_the_leak_has_it_say_and_no_less_at_a_higher_one() -> None:
    said = {leak: [told(leak, index) for index in range(300)] for leak in LEAKS}
    assert not any(said[0.0])
    assert all(len(words) == 2 for words in said[1.0])
    assert sum(map(len, said[0.5])) / 600 == pytest.approx(0.5, abs=0.07)
    for low, high in zip(LEAKS, LEAKS[1:], strict=False):
        assert all(few <= more for few, more in zip(said[low], said[high], strict=True))


def test_cases_differ_by_nothing_but_the_note_when_more_leaks() -> None:
    for index in range(20):
        none, every = (scene_case(WORLD, "heldout", index, leak) for leak in (0.0, 1.0))
        assert (none.options, none.answer, none.votes, none.strata) == (
            every.options, every.answer, every.votes, every.strata,
        )  # fmt: skip


def test_options_are_five_different_classes_of_which_the_right_one_is_drawn() -> None:
    places = []
    for index in range(300):
        case, (thing,) = scene_case(WORLD, "heldout", index, 0.5), WORLD.scene("heldout", index).objects
        assert len(set(case.options)) == OPTIONS and set(case.options) <= set(CLASSES)
        assert case.options[case.answer] == f"{thing.colour} {thing.shape}"
        places.append(case.answer)
    assert max(np.bincount(places, minlength=OPTIONS)) < 90


def test_votes_are_whole_per_cents_and_easier_where_shapes_are_large() -> None:
    made = [scene_case(WORLD, "heldout", index, 0.5) for index in range(300)]
    for case in made:
        assert case.votes is not None and sum(case.votes) == pytest.approx(1, abs=0.03)
        assert all(share * 100 == pytest.approx(round(share * 100)) for share in case.votes)
    easy = [case.human for case in made if case.strata["size"] == "large" and case.strata["background"] != "checked"]
    hard = [case.human for case in made if case.strata["size"] == "small" and case.strata["background"] == "checked"]
    assert np.mean(easy) > np.mean(hard) + 0.1  # type: ignore[arg-type]


def test_written_cases_read_back_with_their_pictures_and_are_not_written_over(tmp_path: Path) -> None:
    file = write_scene_cases(tmp_path / "cases", 4, leak=0.5, seed=3)
    found = read_cases(tmp_path / "cases")
    assert not found.skipped and not found.unread
    assert [one.id for one in found.cases] == [f"heldout-{index}" for index in range(4)]
    for index, one in enumerate(found.cases):
        wanted = scene_case(one_object_world(3, 1, 4), "heldout", index, 0.5)
        assert (one.question, one.options, one.answer, one.voters) == (
            wanted.question, wanted.options, wanted.answer, wanted.voters,
        )  # fmt: skip
        with PIL.open(one.images[0]) as shown:
            assert np.array_equal(np.asarray(shown), np.asarray(WORLD.image("heldout", index).pil()))
    assert len(file.read_text().splitlines()) == 4
    assert set(json.loads(file.read_text().splitlines()[0])["strata"]) == {"size", "texture", "background"}
    with pytest.raises(UserError, match="holds something already"):
        write_scene_cases(tmp_path / "cases", 4)


def test_a_leak_that_is_no_share_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    for wrong in (-0.1, 1.5, float("nan")):
        with pytest.raises(UserError, match="a leak is a share from 0 to 1"):
            write_scene_cases(tmp_path / "cases", 2, leak=wrong)
    with pytest.raises(UserError, match="ask for 1 or more"):
        write_scene_cases(tmp_path / "cases", 0)
    assert not (tmp_path / "cases").exists()
