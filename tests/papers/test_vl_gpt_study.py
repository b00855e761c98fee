"""The contract of the study of VL-GPT: what its result holds, that it goes on after a stop, and that it is shown.

No claim is checked here: two steps an arm teach nothing.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tessera.cli import main
from tessera.data.sample import Image
from tessera.papers import vl_gpt, vl_gpt_study
from tessera.papers.vl_gpt import STUDIED, Run, Schedule
from tessera.papers.vl_gpt_measures import centred_cosine, found_first
from tessera.papers.vl_gpt_study import BUDGET, JOINT, TARGETS, Bench, Budget, claims, headline
from tessera.study.engine import run
from tessera.study.verdict import ITEMS, SEEDS

STEPS = 2
TINY = Budget(
    align_steps=STEPS, align_batch=3, caption_steps=STEPS, joint_steps=STEPS, rows=1, train_pictures=24,
    captions_each=1, fitted=10, heldout=6, captioned=3,
)  # fmt: skip
SMALL = replace(
    STUDIED,
    tokenizer={**STUDIED.tokenizer, "width": 64, "depth": 1, "heads": 1, "mlp_width": 64},
    row_length=160,
    align=Schedule(steps=1, batch=1, lr=1e-3),
    pretrain=Schedule(steps=1, batch=1, lr=1e-3),
)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the study has run through the command line."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(vl_gpt, "STUDIED", SMALL)
        patch.setattr(vl_gpt, "headline", lambda *given: headline(*given, budget=TINY))
        assert main(["reproduce", "vl-gpt", "--seeds", "3"]) == 0
    return folder


@pytest.fixture
def result(done: Path) -> dict[str, Any]:
    return json.loads((done / "results" / "vl-gpt.json").read_text(encoding="utf-8"))


def test_a_result_names_its_arms_seeds_budget_machine_and_time(result: dict[str, Any]) -> None:
    assert list(result["arms"]) == [*TARGETS, *JOINT]
    assert result["seeds"] == [0, 1, 2]
    assert result["budget"]["equal"]
    for name, arm in result["arms"].items():
        assert arm["steps"] == [2 * STEPS if name in TARGETS else STEPS] * 3
        assert min(arm["samples"]) > 0
        assert len(arm["seconds"]) == 3
    assert result["machine"]["cores"] >= 1
    assert result["seconds"] > 0
    assert "commit" in result
    release = torch.__version__.split("+")[0]  # a CUDA wheel names CUDA in the module alone
    assert result["versions"]["torch"] in (release, torch.__version__)
    assert set(result["shared"]["parts"]) == {"mini/clip", "mini/diffusion", "mini/lm"}


def test_every_claim_has_its_paired_difference_intervals_and_verdict(result: dict[str, Any]) -> None:
    assert [claim["name"] for claim in result["claims"]] == [claim.name for claim in claims(TINY)]
    for claim in result["claims"]:
        ours = result["arms"][claim["arm"]]["metrics"][claim["metric"]]["by_seed"]
        theirs = claim["against"]
        if isinstance(theirs, str):
            theirs = result["arms"][theirs]["metrics"][claim["metric"]]["by_seed"]
        assert claim["difference"] == pytest.approx(np.mean(np.subtract(ours, theirs)), abs=1e-9)
        assert [one["method"] for one in claim["intervals"]] == [SEEDS, ITEMS]
        assert all(one["low"] <= claim["difference"] <= one["high"] for one in claim["intervals"])
        assert claim["verdict"] in ("holds", "does not hold", "unclear")
        assert claim["published"]


def test_an_estimate_of_a_condition_is_scored_only_where_it_was_trained(result: dict[str, Any]) -> None:
    scored = {name: set(arm["metrics"]) for name, arm in result["arms"].items()}
    assert {name for name, found in scored.items() if "e_v cosine, detokenizer" in found} == {"image", "both"}
    assert {name for name, found in scored.items() if "e_t cosine, detokenizer" in found} == {"text", "both"}
    assert all("e_v cosine, linear readout" in scored[name] for name in TARGETS)
    assert all({"caption loss", "drawn picture recall@1"} <= scored[name] for name in JOINT)


def test_a_finished_study_is_not_trained_again(done: Path, result: dict[str, Any], monkeypatch) -> None:
    monkeypatch.chdir(done)
    monkeypatch.setattr(vl_gpt_study, "load_mini", lambda: pytest.fail("the parts were loaded"))
    again = run(headline(Run, SMALL, budget=TINY), 3, out=done / "again.json")
    assert again["claims"] == result["claims"]
    assert "15 of 15 trainings were kept" in again["notes"][0]


def test_what_the_arms_share_is_kept_and_what_was_measured_is_not(done: Path) -> None:
    folders = sorted(folder.name.split("-")[0] for folder in (done / "runs/studies/vl-gpt/training").iterdir())
    assert folders == ["align"] * 9


def test_show_reads_the_result(done: Path, result: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "vl-gpt", "--results", str(done / "results")]) == 0
    shown = capsys.readouterr().out
    lit = "on" if result["verdict"] == "holds" else "off"
    assert f"claim {lit}" in shown
    assert result["title"] in shown
    assert "designs tried: 1" in shown
    assert main(["show", "vl-gpt", "--results", str(done / "results"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["lights"]["claim"] == lit
    assert told["result"] == result


def test_fewer_than_three_seeds_are_refused_before_anything_is_loaded(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(vl_gpt_study, "load_mini", lambda: pytest.fail("the parts were loaded"))
    assert main(["reproduce", "vl-gpt", "--seeds", "2"]) == 2
    assert "--seeds takes a whole number of 3 or more, not '2'" in capsys.readouterr().err


def test_remembered_conditions_are_those_of_the_parts(tmp_path: Path) -> None:
    bench = Bench(Run, SMALL, TINY, tmp_path)
    plain, known = vl_gpt_study.load_mini(), bench.foundation
    sample = bench.world.source("pairs")[0]
    images, words = [sample.images[0], Image(np.zeros((64, 64, 3), np.uint8))], ["a red star", "a dog", "a red star"]
    for _ in range(2):
        assert torch.allclose(known.image(images), plain.image(images), atol=0.05)
        assert torch.allclose(known.text(words), plain.text(words), atol=0.01)
    assert list(known.text.known) == ["a red star", "a dog"]


def test_a_code_that_all_pictures_share_counts_for_nothing() -> None:
    target = torch.from_numpy(np.random.default_rng(0).normal(size=(8, 3, 4))).float()
    shared = torch.full((3, 4), 100.0)
    noise = torch.from_numpy(np.random.default_rng(1).normal(size=(8, 3, 4))).float()
    assert centred_cosine(shared + target, shared + target, shared) == pytest.approx([1.0] * 8, abs=1e-4)
    assert abs(np.mean(centred_cosine(shared + noise, shared + target, shared))) < 0.3
    assert found_first(target, target, shared) == [1.0] * 8
    assert sum(found_first(shared.expand(8, 3, 4), shared + target, shared)) == 0


def test_margins_and_arms_are_those_that_were_written_down() -> None:
    said = {claim.name: (claim.expect, claim.margin, claim.relative) for claim in claims(BUDGET)}
    assert said["both keep the image condition"] == ("within", 0.02, False)
    assert said["captions do not suffer"] == ("not higher", 0.03, True)
    assert next(claim.against for claim in claims(BUDGET) if "chance" in claim.name) == 5 / BUDGET.heldout
