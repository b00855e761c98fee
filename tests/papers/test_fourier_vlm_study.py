"""The study of the low-pass: its arms differ in the reducer alone, and measure what they say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from scipy.fft import dctn

from tessera.data.sample import Text
from tessera.papers.asking import Budget
from tessera.papers.fourier_vlm_study import CLAIMS, METRIC, SIDES, WAYS, Bench, energy_at, headline

TINY = Budget(steps=2, rows=2, row_length=128, train_pictures=40, heldout_pictures=6)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(TINY, tmp_path_factory.mktemp("study"))


def test_there_is_an_arm_for_every_way_and_budget_and_claims_speak_of_them(tmp_path: Path) -> None:
    study = headline(tmp_path, TINY)
    assert len(study.arms) == len(WAYS) * len(SIDES) == 6
    assert {claim.margin for claim in study.claims if claim.metric == METRIC} == {0.02}
    assert len(CLAIMS) == 6


def test_arms_have_the_same_weights_to_begin_with_and_as_many_tokens(bench: Bench) -> None:
    made = {}
    for way in WAYS:
        torch.manual_seed(3)
        made[way] = bench.fewer(way, 3, seed=3)
        assert made[way].num_image_tokens() == 9
    first = made["dct"].state_dict()
    for other in made.values():
        weights = other.state_dict()
        assert weights.keys() == first.keys()
        assert all(torch.equal(weights[name], first[name]) for name in first)


def test_an_arm_is_trained_and_judged_on_every_question_with_what_its_claims_need(bench: Bench) -> None:
    found = bench.outcome("dct", 2, 0)
    assert (found.steps, len(found.items[METRIC])) == (2, 6)
    assert set(found.items[METRIC]) <= {0.0, 1.0}
    assert found.samples > 0
    assert all(found.value(claim.metric) >= 0 for claim in CLAIMS if claim.arm == "dct, 4 tokens")


def test_answers_of_a_model_that_knows_them_are_right(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = bench.fewer("pool", 3, seed=0)
    wanted = [sample.segments[-1] for sample in bench.heldout]
    spoken = bench.tokenizer([" " + one.text for one in wanted if isinstance(one, Text)], padding=True)

    def generate(input_ids: torch.Tensor, **options: object) -> torch.Tensor:
        assert options["image_embeds"].shape == (6, 9, 256)
        return torch.cat([input_ids, torch.tensor(spoken.input_ids)], 1)

    monkeypatch.setattr(model, "generate", generate)
    assert [one.strip() for one in bench.answers(model)] == [one.text for one in wanted]


def test_energy_is_that_of_the_low_block_of_the_transform_over_its_share(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = torch.randn(5, 64, 4, generator=torch.Generator().manual_seed(0))
    fresh = Bench(TINY, bench.work)
    monkeypatch.setattr(fresh, "seen", lambda images: (tokens, (8, 8)))
    found = fresh.energy(0)
    block = dctn(tokens.unflatten(1, (8, 8)).double().numpy(), axes=(1, 2), norm="ortho")
    for side in SIDES:
        share = (block[:, :side, :side] ** 2).sum() / (block**2).sum()
        assert found[energy_at(side)] == pytest.approx(share * 64 / side**2, rel=1e-5)
