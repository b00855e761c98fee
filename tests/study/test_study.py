from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tessera.errors import DataError, UserError
from tessera.evaluate.intervals import Estimate
from tessera.study.design import Arm, Claim, Outcome, Study
from tessera.study.engine import run
from tessera.study.machine import commit, describe_machine, versions
from tessera.study.table import text
from tessera.study.verdict import ITEMS, SEEDS, compare, crossed_bootstrap, judge

CLAIM = Claim(name="better", metric="score", arm="new", against="old", expect="higher", published="+3 points")
Trainer = Callable[[int], Outcome]


def _trained(mean: float, spread: float = 0.01, items: int = 200, steps: int = 100) -> Trainer:
    def train(seed: int) -> Outcome:
        rng = np.random.default_rng((seed, int(1000 * mean)))
        scores = mean + rng.normal(0, spread) + np.random.default_rng(0).normal(0, 0.1, items)
        return Outcome(metrics={"loss": 1 - mean}, items={"score": scores.tolist()}, steps=steps, samples=8 * steps)

    return train


def _study(new: Trainer, old: Trainer, *claims: Claim) -> Study:
    arms = (
        Arm(name="new", run=new, config={"kind": "new"}),
        Arm(name="old", run=old, config={"kind": "old"}),
    )
    return Study(slug="tiny", title="A tiny study", arms=arms, claims=claims or (CLAIM,), config={"data": "none"})


def _run(study: Study, folder: Path, **options: Any) -> dict[str, Any]:
    return run(study, options.pop("seeds", 4), out=folder / "result.json", work=folder / "work", **options)


@pytest.mark.parametrize(
    ("new", "old", "verdict"),
    [(0.8, 0.5, "holds"), (0.5, 0.8, "does not hold"), (0.501, 0.5, "unclear")],
)
def test_a_verdict_needs_an_interval_clear_of_zero(tmp_path: Path, new: float, old: float, verdict: str) -> None:
    result = _run(_study(_trained(new), _trained(old)), tmp_path)
    (claim,) = result["claims"]
    assert claim["verdict"] == result["verdict"] == verdict
    assert [one["method"] for one in claim["intervals"]] == [SEEDS, ITEMS]
    assert claim["difference"] == pytest.approx(new - old, abs=0.03)
    assert claim["relative"] == pytest.approx(claim["difference"] / old, rel=0.1)
    assert claim["published"] == "+3 points"


@pytest.mark.parametrize(
    ("expect", "intervals", "verdict"),
    [
        ("higher", [(0.1, 0.3)], "holds"),
        ("higher", [(-0.1, 0.3)], "unclear"),
        ("higher", [(0.1, 0.3), (-0.1, 0.3)], "unclear"),
        ("higher", [(0.0, 0.3)], "unclear"),
        ("lower", [(-0.3, -0.1)], "holds"),
        ("lower", [(0.1, 0.3)], "does not hold"),
        ("within", [(-0.04, 0.03)], "holds"),
        ("within", [(-0.04, 0.06)], "unclear"),
        ("within", [(0.06, 0.09)], "does not hold"),
        ("within", [(-0.09, -0.06)], "does not hold"),
        ("not higher", [(-0.3, 0.04)], "holds"),
        ("not higher", [(-0.3, 0.06)], "unclear"),
        ("not higher", [(0.06, 0.3)], "does not hold"),
    ],
)
def test_verdicts_by_interval(expect: Any, intervals: list[tuple[float, float]], verdict: str) -> None:
    claim = replace(CLAIM, expect=expect, margin=0.0 if expect in ("higher", "lower") else 0.05)
    assert judge(claim, [Estimate((low + high) / 2, low, high, 3) for low, high in intervals]) == verdict


def test_the_seed_interval_is_a_paired_t_interval() -> None:
    ours = [Outcome(metrics={"score": value}, steps=1, samples=1) for value in (1.0, 2.0, 3.0)]
    theirs = [Outcome(metrics={"score": value}, steps=1, samples=1) for value in (0.0, 0.0, 0.0)]
    found = compare(CLAIM, ours, theirs)
    (interval,) = found["intervals"]
    assert interval["value"] == pytest.approx(2.0)
    # 2 -+ 4.3027 / sqrt(3): Student's t with two degrees of freedom
    assert (interval["low"], interval["high"]) == (
        pytest.approx(-0.4841, abs=1e-3),
        pytest.approx(4.4841, abs=1e-3),
    )
    assert found["relative"] is None


def test_pairing_removes_what_seeds_have_in_common(tmp_path: Path) -> None:
    def arm(gain: float) -> Trainer:
        return lambda seed: Outcome(metrics={"score": 10.0 * seed + gain + 0.01 * seed}, steps=1, samples=1)

    (claim,) = _run(_study(arm(1.0), arm(0.0)), tmp_path)["claims"]
    assert claim["verdict"] == "holds"


def test_the_item_interval_covers_both_seeds_and_items() -> None:
    rng = np.random.default_rng(0)
    items, seeds = rng.normal(0, 1, 50), rng.normal(0, 1, (5, 1))
    only_items = crossed_bootstrap(np.tile(items, (5, 1)))
    assert only_items.high - only_items.low == pytest.approx(2 * 1.96 * items.std() / np.sqrt(50), rel=0.15)
    both = crossed_bootstrap(items + seeds)
    assert both.high - both.low > only_items.high - only_items.low


def test_unequal_budgets_are_said(tmp_path: Path) -> None:
    result = _run(_study(_trained(0.8, steps=200), _trained(0.5, steps=100)), tmp_path)
    assert not result["budget"]["equal"]
    assert "new 200 steps, 1600 samples" in result["budget"]["note"]
    assert "UNEQUAL" in text(result)


def test_equal_budgets_are_said(tmp_path: Path) -> None:
    budget = _run(_study(_trained(0.8), _trained(0.5)), tmp_path)["budget"]
    assert budget["equal"]
    assert budget["note"] == "every arm: 100 steps, 800 samples a seed; no arm was tuned"


def test_only_arms_that_a_claim_compares_need_equal_budgets(tmp_path: Path) -> None:
    study = _study(_trained(0.8), _trained(0.5))
    short = Arm(name="short", run=_trained(0.5, steps=10), config={"kind": "short"})
    budget = _run(replace(study, arms=(*study.arms, short)), tmp_path)["budget"]
    assert budget["equal"]
    assert "equal between the arms that are compared" in budget["note"]
    assert "short 10 steps, 80 samples" in budget["note"]


def test_budgets_need_to_be_equal_seed_by_seed(tmp_path: Path) -> None:
    def arm(*samples: int) -> Trainer:
        return lambda seed: Outcome(metrics={"score": 1.0}, steps=5, samples=samples[seed])

    packed = _run(_study(arm(40, 42, 41), arm(40, 42, 41)), tmp_path / "packed", seeds=3)["budget"]
    assert packed["equal"]
    assert packed["note"].startswith("every arm: 5 steps, 40 to 42 samples a seed")
    assert not _run(_study(arm(40, 42, 41), arm(42, 40, 41)), tmp_path / "other", seeds=3)["budget"]["equal"]


def test_an_arm_can_be_held_against_a_number(tmp_path: Path) -> None:
    chance = replace(CLAIM, name="beats chance", against=0.6)
    result = _run(_study(_trained(0.8), _trained(0.5), chance, replace(chance, arm="old")), tmp_path)
    assert [claim["verdict"] for claim in result["claims"]] == ["holds", "does not hold"]
    assert [claim["difference"] for claim in result["claims"]] == pytest.approx([0.2, -0.1], abs=0.03)
    assert [one["method"] for one in result["claims"][0]["intervals"]] == [SEEDS, ITEMS]
    assert "new - 0.6" in text(result)


def test_a_margin_can_be_a_share_of_the_other_arms_score(tmp_path: Path) -> None:
    claim = replace(CLAIM, expect="not higher", margin=0.1, relative=True)
    result = _run(_study(_trained(0.52), _trained(0.5), claim, replace(claim, margin=0.01)), tmp_path)
    first, second = result["claims"]
    assert first["verdict"] == "holds"
    assert first["margin"] == pytest.approx(0.1 * result["arms"]["old"]["metrics"]["score"]["value"])
    assert first["relative_margin"] == 0.1
    assert second["verdict"] != "holds"


def test_the_notes_of_a_study_go_with_its_result(tmp_path: Path) -> None:
    study = replace(_study(_trained(0.8), _trained(0.5)), notes=("What this does not show.",))
    result = _run(study, tmp_path)
    assert result["notes"] == ["What this does not show."]
    assert "What this does not show." in text(result)


def test_a_stopped_study_goes_on_where_it_was(tmp_path: Path) -> None:
    calls: list[tuple[str, int]] = []

    def counted(name: str, train: Trainer, stop_at: int | None = None) -> Trainer:
        def inner(seed: int) -> Outcome:
            if seed == stop_at:
                raise KeyboardInterrupt
            calls.append((name, seed))
            return train(seed)

        return inner

    whole = _run(_study(_trained(0.8), _trained(0.5)), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        _run(_study(counted("new", _trained(0.8)), counted("old", _trained(0.5), stop_at=2)), tmp_path)
    assert not (tmp_path / "result.json").exists()
    assert calls == [("new", 0), ("old", 0), ("new", 1), ("old", 1), ("new", 2)]
    again = _run(_study(counted("new", _trained(0.8)), counted("old", _trained(0.5))), tmp_path)
    assert calls[5:] == [("old", 2), ("new", 3), ("old", 3)]
    assert again["claims"] == whole["claims"]
    assert "5 of 8 trainings were kept" in again["notes"][0]


def test_another_configuration_is_trained_anew(tmp_path: Path) -> None:
    _run(_study(_trained(0.8), _trained(0.5)), tmp_path)
    changed = replace(_study(_trained(0.5), _trained(0.5)), config={"data": "other"})
    result = _run(changed, tmp_path)
    assert result["notes"] == []
    assert result["claims"][0]["verdict"] == "unclear"


def test_the_result_counts_the_designs_tried(tmp_path: Path) -> None:
    study = _study(_trained(0.501), _trained(0.5))
    assert _run(study, tmp_path)["design"]["tried"] == 1
    assert _run(study, tmp_path)["design"]["tried"] == 1
    second = _run(study, tmp_path, seeds=5)["design"]
    assert second["tried"] == 2
    assert second["earlier"][0]["verdicts"] == {"better": "unclear"}
    assert _run(study, tmp_path, seeds=6)["design"]["tried"] == 3
    assert _run(study, tmp_path, seeds=4)["design"]["tried"] == 3


def test_a_result_names_what_made_it(tmp_path: Path) -> None:
    told: list[str] = []
    result = _run(_study(_trained(0.8), _trained(0.5)), tmp_path, command="tessera reproduce tiny", tell=told.append)
    assert json.loads((tmp_path / "result.json").read_text()) == result
    assert result["command"] == "tessera reproduce tiny"
    assert result["seeds"] == [0, 1, 2, 3]
    assert result["machine"] == describe_machine()
    assert result["versions"] == versions()
    assert result["commit"] == commit()
    assert result["seconds"] >= 0
    assert len(told) == 8
    assert told[0].startswith("seed 0 (1 of 4), arm new")
    assert told[0].endswith("min left")
    assert not told[-1].endswith("left")
    assert result["arms"]["new"]["metrics"]["loss"]["by_seed"] == pytest.approx([0.2] * 4)
    shown = text(result)
    assert "holds" in shown
    assert "+3 points" in shown


def test_a_study_needs_three_seeds(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="3 different seeds"):
        _run(_study(_trained(0.8), _trained(0.5)), tmp_path, seeds=2)
    with pytest.raises(UserError, match="different seeds"):
        _run(_study(_trained(0.8), _trained(0.5)), tmp_path, seeds=[1, 1, 2])


def test_a_claim_about_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="an arm 'olt'; did you mean 'old'"):
        _study(_trained(1), _trained(0), replace(CLAIM, against="olt"))
    with pytest.raises(UserError, match="margin"):
        _study(_trained(1), _trained(0), replace(CLAIM, expect="within"))
    arm = Arm(name="new", run=_trained(1))
    with pytest.raises(UserError, match="two arms"):
        Study(slug="s", title="t", arms=(arm, arm), claims=())


def test_a_metric_that_no_arm_gives_is_named_after_the_first_training(tmp_path: Path) -> None:
    study = _study(_trained(1), _trained(0), replace(CLAIM, metric="scores"))
    with pytest.raises(UserError, match="no metric 'scores' was measured; did you mean 'score'"):
        _run(study, tmp_path)


def test_a_diverged_arm_is_refused() -> None:
    with pytest.raises(UserError, match="'loss' is nan"):
        Outcome(metrics={"loss": float("nan")}, steps=1, samples=1)
    with pytest.raises(UserError, match="'score' is inf"):
        Outcome(items={"score": [1.0, float("inf")]}, steps=1, samples=1)


def test_a_configuration_that_is_no_json_is_refused(tmp_path: Path) -> None:
    study = replace(_study(_trained(1), _trained(0)), config={"data": Path("x")})
    with pytest.raises(UserError, match="plain JSON"):
        _run(study, tmp_path)


def test_a_file_that_is_no_result_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text("notes of mine")
    with pytest.raises(DataError, match="not a result of a study"):
        _run(_study(_trained(0.8), _trained(0.5)), tmp_path)
    assert (tmp_path / "result.json").read_text() == "notes of mine"
    assert not (tmp_path / "work").exists()  # found before the first training


def test_a_damaged_outcome_is_named(tmp_path: Path) -> None:
    study = _study(_trained(0.8), _trained(0.5))
    _run(study, tmp_path)
    cell = sorted((tmp_path / "work").iterdir())[0]
    cell.write_text("{}")
    with pytest.raises(DataError, match="delete it and run again"):
        _run(study, tmp_path)


def test_a_result_names_folders_of_its_command_without_where_they_lay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["/a/b/__main__.py", "reproduce", "tiny", "--data", "/a/b/letters", "--out=/c/d"])
    result = _run(_study(_trained(0.8), _trained(0.5)), tmp_path)
    assert result["command"] == "tessera reproduce tiny --data letters --out=d"
