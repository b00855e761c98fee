"""The study of debiasing: its arms answer the same probes with the same model, each in its own way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tessera.data.worlds.scenes.world import ScenesWorld
from tessera.evaluate.hallucination import STRATEGIES, present
from tessera.evaluate.posthoc import language_prior, post_hoc, shares
from tessera.papers.asking import Budget, truth
from tessera.papers.vdd_study import (
    ARMS,
    BLIND,
    CHAIR_S,
    CLAIMS,
    ERROR,
    EVEN,
    F1,
    METRIC,
    NAMED,
    SKEWED,
    YES,
    Bench,
    Existence,
    after,
    headline,
    sampled,
)

TINY = Budget(steps=2, rows=2, row_length=128, train_pictures=40, heldout_pictures=4)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(TINY, tmp_path_factory.mktemp("study"))


def test_claims_speak_of_arms_that_are_there_and_of_one_model_each(tmp_path: Path) -> None:
    study = headline(tmp_path, TINY)
    assert [arm.name for arm in study.arms] == list(ARMS)
    for claim in study.claims:
        assert ARMS[claim.arm][:2] == ARMS[claim.against][:2]
    assert len(CLAIMS) == 9


def test_a_source_says_yes_as_often_as_it_is_told_and_only_of_what_is_there() -> None:
    world = ScenesWorld(train_pictures=500)
    for share in (SKEWED, EVEN):
        source = Existence(world, "train", share)
        yes = []
        for place in range(500):
            sample, here = source[place], present(world.scene("train", place))
            yes.append(truth(sample) == "yes")
            assert any(thing in sample.segments[1].text for thing in here) == yes[-1]
        assert np.mean(yes) == pytest.approx(share, abs=0.05)
    assert Existence(world, "train", SKEWED).fingerprint() != Existence(world, "train", EVEN).fingerprint()


def test_arms_read_the_probabilities_of_one_model_debiased_as_they_say(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {
        None: torch.tensor([[0.5, 0.4], [0.3, 0.6]]).double(), "none": torch.tensor([[0.6, 0.2], [0.9, 0.1]]).double(),
        "unk": torch.tensor([[0.5, 0.5], [0.1, 0.3]]).double(), "zeros": torch.tensor([[0.2, 0.2]] * 2).double(),
    }  # fmt: skip
    monkeypatch.setattr(bench, "first", lambda skew, context, seed: given[context])
    torch.testing.assert_close(bench.likelier(SKEWED, None, 0), shares(given[None]))
    torch.testing.assert_close(bench.likelier(SKEWED, "zeros", 0), shares(given[None]), atol=1e-9, rtol=0)
    for prior, contexts in (("none", ["none"]), ("both", ["none", "unk"])):
        wanted = post_hoc(given[None], language_prior([given[one] for one in contexts]))
        torch.testing.assert_close(bench.likelier(SKEWED, prior, 0), wanted)


def test_every_arm_answers_every_probe_with_the_one_model_of_its_seed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {arm: bench.outcome(arm, 0) for arm in ("naive", after("noise"), "sampled", sampled("none"))}
    for one in found.values():
        assert (one.steps, one.samples, len(one.items[METRIC])) == (0, 0, len(bench.probes))
        assert {f"{METRIC}, {way}" for way in STRATEGIES} | {METRIC, YES} == set(one.items) - {CHAIR_S}
        assert 0 <= one.value(F1) <= 1
    assert {ERROR in one.metrics for one in (found["naive"], found[after("noise")])} == {True}
    assert ERROR not in found["sampled"].metrics
    assert {name for name, one in found.items() if BLIND in one.metrics} == {after("noise")}
    blind = shares(bench.first(SKEWED, "noise", 0))[:, 0].mean()
    assert found[after("noise")].metrics[BLIND] == pytest.approx(float(blind))
    assert {name for name, one in found.items() if CHAIR_S in one.items} == {"sampled", sampled("none")}
    assert len(found["sampled"].items[CHAIR_S]) == TINY.heldout_pictures and found["sampled"].metrics[NAMED] >= 0
    # Nothing more is trained, and what was kept gives the same answers.
    again = Bench(TINY, bench.work)
    monkeypatch.setattr(again, "learn", lambda *_: pytest.fail("trained again"))
    assert again.outcome("naive", 0) == found["naive"]
    assert sum(truth(sample) == "yes" for sample in bench.probes) * 2 == len(bench.probes)


def test_captions_that_name_what_is_not_there_are_counted_beside_their_own_pictures(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [sample.segments[0] for sample in bench.described]
    assert [one.key for one in asked] == [bench.world.image("heldout", number).key for number in range(len(asked))]
    things = [present(bench.world.scene("heldout", number)) for number in range(len(asked))]
    said = [f"a {some[0]}" if place else "a red star and a green cross" for place, some in enumerate(things)]
    monkeypatch.setattr(bench, "drawn", lambda *_: said)
    metrics, wrong = bench.captioned(SKEWED, None, 0)
    absent = sum(thing not in things[0] for thing in ("red star", "green cross"))
    assert wrong == [float(absent > 0), 0.0, 0.0, 0.0]
    assert metrics == {NAMED: (2 + 3) / 4, "CHAIR_i": pytest.approx(absent / 5)}
