"""The study of the low-pass: its arms differ in the reducer alone, and measure what they say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from scipy.fft import dctn

from tessera.data.sample import Text
from tessera.data.sequence import IGNORED
from tessera.papers.fourier_vlm_study import CLAIMS, METRIC, SIDES, WAYS, Bench, Budget, energy_at, headline

TINY = Budget(steps=2, rows=2, row_length=128, train_pictures=40, questions=6)


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
        made[way] = bench.model(way, 3, seed=3)
        assert made[way].num_image_tokens() == 9
    first = made["dct"].state_dict()
    for other in made.values():
        weights = other.state_dict()
        assert weights.keys() == first.keys()
        assert all(torch.equal(weights[name], first[name]) for name in first)


def test_what_is_learned_from_is_what_the_whole_model_sees_and_the_encoder_stays(bench: Bench) -> None:
    torch.manual_seed(0)
    model = bench.model("dct", 2, seed=0)
    stage = bench.stage(model, 0)
    batch = next(iter(stage.loader))
    (total, number) = stage.objective(model, batch)["words"]
    pictures = bench.stacked(model, batch.images)
    output = model(batch.input_ids, labels=batch.labels, segment_ids=batch.segment_ids, pixel_values=pictures)
    assert number == int((batch.labels != IGNORED).sum())
    torch.testing.assert_close(total / number, output.loss, atol=1e-3, rtol=1e-3)  # features are kept in half precision
    assert not any(weight.requires_grad for weight in model.vision.parameters())


def test_an_arm_is_trained_and_judged_on_every_question_with_what_its_claims_need(bench: Bench) -> None:
    found = bench.outcome("dct", 2, 0)
    assert (found.steps, len(found.items[METRIC])) == (2, 6)
    assert set(found.items[METRIC]) <= {0.0, 1.0}
    assert found.samples > 0
    assert all(found.value(claim.metric) >= 0 for claim in CLAIMS if claim.arm == "dct, 4 tokens")
    assert not list((bench.work / "training").iterdir())


def test_answers_of_a_model_that_knows_them_are_right(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = bench.model("pool", 3, seed=0)
    wanted = [sample.segments[-1] for sample in bench.heldout]
    spoken = bench.tokenizer([" " + one.text for one in wanted if isinstance(one, Text)], padding=True)

    def generate(ids: torch.Tensor, **options: object) -> torch.Tensor:
        assert options["pixel_values"].shape == (6, 3, 64, 64)
        assert (ids[:, -1] != bench.tokenizer.pad_token_id).all()
        assert ((ids == model.config.image_token_id).sum(1) == 9).all()
        return torch.cat([ids, torch.tensor(spoken.input_ids)], 1)

    monkeypatch.setattr(model, "generate", generate)
    assert [one.strip() for one in bench.answers(model)] == [one.text for one in wanted]


def test_energy_is_that_of_the_low_block_of_the_transform_over_its_share(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = torch.randn(5, 64, 4, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr("tessera.models.lvlm.LVLMForConditionalGeneration.visual_features", lambda *_: (tokens, (8, 8)))
    found = Bench(TINY, bench.work).energy(0)
    block = dctn(tokens.unflatten(1, (8, 8)).double().numpy(), axes=(1, 2), norm="ortho")
    for side in SIDES:
        share = (block[:, :side, :side] ** 2).sum() / (block**2).sum()
        assert found[energy_at(side)] == pytest.approx(share * 64 / side**2, rel=1e-5)
