"""The study of text and image: its arms ask one model a seed about the same cases, shown otherwise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tessera.data.sample import Image, Text
from tessera.evaluate.cases.scenes import one_object_world
from tessera.papers.asking import Budget
from tessera.papers.medical_cases_study import (
    ARMS,
    BLANK,
    CLAIMS,
    EXCESS,
    METRIC,
    NONE,
    SHOWN,
    WRONG,
    Bench,
    CaseSource,
    both,
    excess,
    headline,
    text,
)

TINY = Budget(steps=1, rows=2, row_length=128, train_pictures=40, heldout_pictures=8, counts=(1.0,))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(TINY, tmp_path_factory.mktemp("study"))


def test_claims_speak_of_arms_that_are_there(tmp_path: Path) -> None:
    study = headline(tmp_path, TINY)
    assert [arm.name for arm in study.arms] == list(ARMS)
    assert len(CLAIMS) == len({claim.name for claim in CLAIMS}) == 6
    assert {both(0.0), both(0.5), both(1.0), text(0.0), text(1.0), WRONG, BLANK, "image"} <= set(ARMS)


def test_a_model_learns_from_each_mode_as_often_as_it_is_told_and_from_notes_that_never_lie() -> None:
    world = one_object_world(1, 400, 1)
    source, modes = CaseSource(world, "train"), []
    for index in range(400):
        sample, (thing,) = source[index], world.scene("train", index).objects
        asked, answer = (one for one in sample.segments if isinstance(one, Text))
        modes.append(sample.meta["mode"])
        assert any(isinstance(one, Image) for one in sample.segments) is (modes[-1] != "text")
        assert ("notes" in asked.text) is (modes[-1] != "image")
        assert answer.text == f"{thing.colour} {thing.shape}" and answer.learned and not asked.learned
        note = asked.text.partition("Which")[0] if "notes" in asked.text else ""
        for said, true in ((thing.colour, ("colored", thing.colour)), (thing.shape, ("object", thing.shape))):
            assert not note or any(word in note for word in true), (note, said)
    for mode, share in SHOWN.items():
        assert np.mean([one == mode for one in modes]) == pytest.approx(share, abs=0.08)
    assert source[3].text == CaseSource(world, "train")[3].text


def test_every_arm_asks_the_one_model_of_its_seed_about_the_same_cases(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {arm: bench.outcome(arm, 0) for arm in (text(0.0), "image", WRONG, BLANK)}
    for one in found.values():
        assert (one.steps, one.samples) == (0, 0)
        assert {len(one.items[METRIC]), len(one.items[NONE])} == {8}
        assert np.isfinite(one.value(EXCESS))
    ids = [[one.case.id for one in bench.asked(arm, 0)] for arm in found]
    assert all(one == ids[0] for one in ids)
    # Nothing more is trained, and what was kept gives the same replies.
    again = Bench(TINY, bench.work)
    monkeypatch.setattr(again, "learn", lambda *_: pytest.fail("trained again"))
    assert again.outcome(WRONG, 0) == found[WRONG]


def test_arms_show_what_they_say(bench: Bench) -> None:
    none, every = (bench.cases(leak).cases for leak in (0.0, 1.0))
    assert all("colored object" in one.question for one in none)
    assert not any("colored" in one.question or "object," in one.question for one in every)
    grey = bench.cases(1.0, grey=True).cases
    assert [one.question for one in grey] == [one.question for one in every]
    assert {one.images[0].name for one in grey} == {"grey.png"}


def test_the_excess_is_that_of_the_easiest_quarter_less_that_of_the_hardest() -> None:
    from tessera.evaluate.cases.running import Answered
    from tessera.evaluate.cases.scoring import Judged
    from tests.evaluate.cases_made import case

    judged = []
    for number in range(8):
        share = 0.1 * (number + 1)
        votes = tuple(share if place == 0 else (1 - share) / 4 for place in range(5))
        one = case(number, answer=0, votes=votes)
        judged.append(Judged(Answered(one.id, "both", 0, (0, 1, 2, 3, 4), ""), one, 0 if number in (0, 7) else 1))
    # hardest: right, wrong at 0.1, 0.2; easiest: wrong, right at 0.7, 0.8
    assert excess(judged) == pytest.approx((0.5 - 0.75) - (0.5 - 0.15))
