"""The study of GR-1 at a tiny budget."""

from __future__ import annotations

from pathlib import Path

import pytest

from tessera.papers.gr_1_study import ARMS, BUDGET, CLAIMS, ERROR, SUCCESS, TASKS, Bench, Budget

pytest.importorskip("gymnasium")
TINY = Budget(
    steps=3, first=1, batch=2, demonstrations=3, clips=2, heldout=2, tries=3, limit=2,
    model={
        "width": 32, "depth": 1, "heads": 2, "window": 4, "latents": 2, "resampler_depth": 1, "resampler_heads": 2,
        "resampler_head_width": 8, "decoder_depth": 1, "decoder_heads": 2, "patch_size": 16,
    },
)  # fmt: skip


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(TINY, tmp_path_factory.mktemp("study"))


def test_arms_take_the_same_steps_over_as_many_windows_and_are_judged_on_the_same(bench: Bench) -> None:
    outcomes = {name: bench.outcome(name, 0) for name in ARMS}
    assert {(one.steps, one.samples) for one in outcomes.values()} == {(3, 6)}
    for one in outcomes.values():
        assert len(one.items[ERROR]) == 2 and len(one.items[SUCCESS]) == 3
        assert set(one.items[SUCCESS]) <= {0.0, 1.0} and all(error > 0 for error in one.items[ERROR])
    assert len({tuple(one.items[ERROR]) for one in outcomes.values()}) == 3
    assert not [*(bench.work / "training").iterdir()]


def test_demonstrations_differ_between_seeds_and_clips_and_what_is_judged_do_not(bench: Bench) -> None:
    first, second = bench.material(0), bench.material(1)
    assert first.robot.fingerprint() != second.robot.fingerprint()
    assert first.clips.fingerprint() == second.clips.fingerprint()
    assert {one.task for one in first.robot.episodes} <= set(TASKS)
    assert not {one.task for one in first.clips.episodes} & set(TASKS)
    assert list(first.robot.episodes[0].cameras) == ["static"]


def test_every_claim_is_of_arms_of_the_same_budget_and_the_hashes_tell_budgets_apart(
    tmp_path: Path, bench: Bench
) -> None:
    study = bench.study()
    assert {name for claim in CLAIMS for name in claim.arms} == {arm.name for arm in study.arms} == set(ARMS)
    other = Bench(Budget(**{**vars(TINY), "tries": 4}), tmp_path).study()
    assert not {study.arm_hash(arm) for arm in study.arms} & {other.arm_hash(arm) for arm in other.arms}
    assert BUDGET.recipe(**ARMS["pre-trained"]).act.steps + BUDGET.first == BUDGET.steps
    assert BUDGET.recipe(**ARMS["actions"]).act.steps == BUDGET.steps
