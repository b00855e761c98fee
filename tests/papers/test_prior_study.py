"""The study of PRIOR: its arms differ in the weights alone, and it measures what it says."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tessera.data.sequence import IGNORED
from tessera.papers.prior_study import (
    ARMS,
    BLIND,
    CLAIMS,
    EARLY,
    ENDINGS,
    FINAL,
    OPENINGS,
    VISUAL,
    Bench,
    Budget,
    NextWord,
    headline,
)

TINY = Budget(steps=3, rows=2, row_length=128, train_pictures=24, heldout_pictures=4, reference_steps=1)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(TINY, tmp_path_factory.mktemp("study"))


def test_arms_and_claims_speak_of_weights_their_control_and_captions_without_boilerplate(tmp_path: Path) -> None:
    study = headline(tmp_path, TINY)
    assert [arm.name for arm in study.arms] == list(ARMS)
    assert {claim.arm for claim in CLAIMS} | {claim.against for claim in CLAIMS} == {*ARMS, 0.0}


def test_boilerplate_says_nothing_of_the_picture_and_every_visual_word_is_one_token(bench: Bench) -> None:
    words = {word.strip(".,:") for text in (*OPENINGS, *ENDINGS) for word in text.split()}
    assert words.isdisjoint(VISUAL)
    assert len(bench.visual) == len(VISUAL) == 24
    full = {tokens.input_ids.tobytes() for _, _, tokens in bench.captions(True).sequences}
    assert len(full) > 12


def test_arms_begin_with_the_same_weights_and_read_the_same_captions_in_the_same_order(bench: Bench) -> None:
    stages, weights = {}, {}
    for arm in ("ntp", "prior", "shuffled"):
        torch.manual_seed(5)
        model = bench.model()
        weights[arm], stages[arm] = model.state_dict(), bench.stage(model, arm, 0)
    batches = {arm: next(iter(stage.loader)) for arm, stage in stages.items()}
    for arm in ("prior", "shuffled"):
        assert all(torch.equal(weight, weights[arm][name]) for name, weight in weights["ntp"].items())
        assert torch.equal(batches[arm].input_ids, batches["ntp"].input_ids)
    right, mixed = batches["prior"].blind, batches["shuffled"].blind
    assert not torch.equal(right, mixed)
    for number in range(1, int(batches["prior"].segment_ids.max()) + 1):
        own = (batches["prior"].segment_ids[0] == number) & (batches["prior"].labels[0] != IGNORED)
        assert sorted(right[0][own].tolist()) == sorted(mixed[0][own].tolist())


def test_an_arm_is_trained_and_judged_early_and_at_the_end(bench: Bench) -> None:
    found = bench.outcome("prior", 0)
    assert (found.steps, len(found.items[FINAL]), len(found.items[EARLY])) == (3, 4, 4)
    assert all(0 <= share <= 1 for share in found.items[FINAL])
    assert -1 <= found.value(BLIND) <= 1
    assert not list((bench.work / "training").iterdir())


def test_visual_words_of_a_model_that_knows_them_are_right_and_others_do_not_count(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    visual = bench.visual

    def read(self, model, batch):
        steps = (batch.labels != IGNORED)[:, 1:]
        words = batch.labels[:, 1:][steps]
        said = torch.where(torch.isin(words, visual), words, 0)
        first = torch.isin(words, visual).nonzero()[0, 0]
        said[first] = 0  # one word of the first picture's five or more is wrong
        return SimpleNamespace(words=words, logits=torch.nn.functional.one_hot(said, 2048).float() * 50)

    monkeypatch.setattr(NextWord, "read", read)
    shares, lost = bench.judged(bench.model(), filler=True)
    count = len(
        [word for word in bench.world.source("pairs", "heldout")[0].meta["canonical"].split() if word in VISUAL]
    )
    assert shares == [pytest.approx(1 - 1 / count), 1.0, 1.0, 1.0]
    assert lost > 40
