"""NLVR's statements in each form that models read them in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tessera.data.readers.nlvr import GREY, Form, Statements
from tessera.errors import DataError
from tests.data.tiny import write_nlvr


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten examples in two arrangements each."""
    path = tmp_path_factory.mktemp("nlvr") / "nlvr-dev.tar"
    write_nlvr(path, 10)
    return path


def test_a_statement_is_three_boxes_a_question_and_its_answer(dev: Path) -> None:
    sample = Statements(dev, form="boxes")[5]
    greys = [np.unique(np.asarray(image.pil())).tolist() for image in sample.images]
    assert greys == [[12], [21], [30]]
    assert [image.pil().size for image in sample.images] == [(100, 100)] * 3
    assert "There are 2 black blocks" in sample.text and sample.text.endswith("true")
    assert [segment.learned for segment in sample.segments] == [False] * 4 + [True]
    assert len({image.key for image in sample.images}) == 3


def test_blank_pictures_change_the_pictures_alone(dev: Path) -> None:
    seen, blank = (Statements(dev, form=form) for form in ("boxes", "blank"))
    assert seen.fingerprint() != blank.fingerprint()
    for index in range(len(seen)):
        ours, theirs = seen[index], blank[index]
        assert (ours.id, ours.text, ours.segments[3:]) == (theirs.id, theirs.text, theirs.segments[3:])
        assert all(np.unique(np.asarray(image.pil())).tolist() == [GREY] for image in theirs.images)


def test_training_meets_every_arrangement_and_the_test_one_of_each_example(dev: Path) -> None:
    every, once = Statements(dev), Statements(dev, once=True)
    assert (len(every), len(once)) == (20, 10)
    assert [once[index].id for index in range(10)] == [f"{number:02d}-0-0" for number in range(10)]
    assert len(Statements(dev, examples=4)) == 8


def test_whole_pictures_are_one_picture_each_and_only_true_ones_are_captions(dev: Path) -> None:
    every, once, captions = Statements(dev), Statements(dev, once=True, examples=4), Statements(dev, form="caption")
    assert (len(every), len(once)) == (20, 4)
    assert every[0].images[0].pil().size == (400, 100) and len(every[0].images) == 1
    true = [every[index] for index in range(20) if every[index].meta["label"]]
    assert [captions[index].text for index in range(len(captions))] == [one.meta["sentence"] for one in true]
    assert [captions[index].id for index in range(len(captions))] == [one.id for one in true]


def test_whatever_is_taken_of_a_file_has_a_fingerprint_of_its_own(dev: Path) -> None:
    forms: tuple[Form, ...] = ("whole", "caption", "boxes", "blank")
    cuts: tuple[dict[str, Any], ...] = ({}, {"once": True}, {"examples": 4}, {"once": True, "examples": 4})
    taken = [Statements(dev, form=form, **cut) for form in forms for cut in cuts]
    assert len({one.fingerprint() for one in taken}) == len(taken) == 16


def test_a_file_that_is_not_there_is_named_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nlvr-dev.tar is not there; --data takes the folder"):
        Statements(tmp_path / "nlvr-dev.tar")
