"""The studies of LXMERT: arms of equal budget over the same labels. Two steps teach nothing, so no claim is checked."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tessera.cli import main
from tessera.errors import UserError
from tessera.papers.lxmert import LXMERT, RECIPES, Run
from tessera.papers.lxmert_study import (
    ALL,
    HEADLINE,
    LEFT_OUT,
    NONE,
    Budget,
    drawn,
    headline,
    nlvr,
    off,
    tasks,
)
from tessera.study.engine import run
from tests.data.tiny import write_nlvr

TINY = Budget(
    pictures=12, captions_each=2, answered=20, heldout=6, examples=4, pretrain=1, answering=1, finetune=2, batch=4
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder laid out as NLVR is, with ten examples in two arrangements each."""
    folder = tmp_path_factory.mktemp("nlvr")
    for part in ("dev", "test"):
        write_nlvr(folder / f"nlvr-{part}.tar", 10)
    return folder


def test_the_headline_study_runs_both_arms_at_equal_steps_and_samples(tmp_path: Path) -> None:
    study = headline(Run, RECIPES["mini"], tmp_path, TINY)
    result = run(study, 3, out=tmp_path / "lxmert.json", work=tmp_path)
    assert list(result["arms"]) == [ALL, NONE] and result["budget"]["equal"]
    for arm in result["arms"].values():
        assert arm["steps"] == [4, 4, 4] and arm["samples"] == [16, 16, 16]
        assert all(0 <= share <= 1 for share in arm["metrics"]["accuracy"]["by_seed"])
    assert [claim["arm"] for claim in result["claims"]] == [ALL]
    assert not list((tmp_path / "training").iterdir())


def test_nlvr_is_read_whole_and_judged_once_an_example(written: Path, tmp_path: Path) -> None:
    study = nlvr(Run, RECIPES["mini"], data=written, model=None, budget=TINY, work=tmp_path)
    result = run(study, 3, out=tmp_path / "x.json", work=tmp_path)
    first, majority = result["claims"]
    assert first["against"] == NONE and majority["against"] == pytest.approx(4 / 6)
    assert result["budget"]["equal"] and list(result["arms"]) == [ALL, NONE]


def test_all_arms_have_the_same_answers_and_the_arms_are_what_they_say(tmp_path: Path) -> None:
    bench = drawn(Run, RECIPES["mini"], tmp_path, LEFT_OUT, TINY)
    (material, table), (second, _) = bench.first, bench.second
    assert len(material.sources("questions")[0][0]) == 20 and material is second
    assert len(table) <= 20
    assert off(None) == ["words", "matched", "answers", "features", "objects", "attributes"]
    assert [off(one) for one in LEFT_OUT.values()] == [
        [],
        ["answers"],
        ["features", "objects", "attributes"],
        ["matched"],
    ]
    assert list(HEADLINE) == [ALL, NONE]


def test_a_task_that_is_off_leaves_its_head_as_it_was(tmp_path: Path) -> None:
    bench = drawn(Run, RECIPES["mini"], tmp_path, LEFT_OUT, TINY)
    made: list[Any] = []
    begin = partial(_noting, made)
    bench.begin = begin
    for arm in (ALL, "without regions"):
        bench.outcome(arm, 0)
    (with_regions, started), (without, begun) = made[0], made[1]
    head = "obj_predict_head.decoder_dict.obj.weight"
    assert started[head].equal(begun[head])  # both arms begin with the same weights
    assert not with_regions[head].equal(started[head])
    assert (without[head] - begun[head]).abs().max() < 1e-3  # decay alone


def _noting(made: list[Any], *arguments: Any, **options: Any) -> Run:
    """A Run that notes the pre-trained weights, at their end and at their start."""
    begun = Run(*arguments, **options)
    first = begun.pretraining

    def pretraining(model: Any, name: str, *rest: Any, **more: Any) -> Any:
        if name == "pretrain":
            made.append((model.state_dict(), {key: value.clone() for key, value in model.state_dict().items()}))
        return first(model, name, *rest, **more)

    begun.pretraining = pretraining  # type: ignore[method-assign]
    return begun


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--study nlvr", "name their folder with --data FOLDER"),
        ("--study nlvr --data {} --model x", "leave out --model"),
        ("--study tasks --data {}", "draws its own pictures"),
        ("--study taks", "has no study 'taks'; did you mean 'tasks'?"),
    ],
)
def test_what_is_missing_or_too_much_is_one_sentence(words: str, sentence: str, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "x.json"
    assert main(["reproduce", "lxmert", *words.format(tmp_path).split(), "--out", str(out)]) == 2
    assert sentence in capsys.readouterr().err and not out.exists()


def test_further_studies_are_those_of_the_paper() -> None:
    assert set(LXMERT().studies) == {"tasks", "nlvr"}
    with pytest.raises(UserError, match="leave out --data and --model"):
        tasks(Run, RECIPES["mini"], data=None, model=Path("m"))
