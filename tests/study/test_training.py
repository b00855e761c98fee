"""A training of an arm: its folder, its cost, and what is left when a study is stopped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tessera.study.training import trained
from tessera.train.engine import Stage, Trainer
from tests.train.tiny import tiny_model, tiny_stage


def trainer(folder: Path) -> Trainer:
    return Trainer(folder, seed=3, resume=True, precision="fp32")


def stages(asked: list[int]) -> Iterator[Stage]:
    for number, steps in enumerate((2, 3)):
        asked.append(torch.initial_seed())
        yield tiny_stage(f"part {number}", steps, model=tiny_model(number))


def test_the_model_is_that_of_the_last_stage_and_every_stage_costs(tmp_path: Path) -> None:
    asked: list[int] = []
    with trained(trainer(tmp_path / "run"), stages(asked), 5) as run:
        assert (tmp_path / "run" / "timings.jsonl").is_file()
        assert not torch.equal(run.model[0].weight, tiny_model(1)[0].weight)
    assert (run.steps, run.samples) == (5, 20)
    assert len(set(asked)) == 2  # each stage is asked for under a seed of its own
    assert not (tmp_path / "run").exists()


def test_a_study_that_stops_while_it_judges_finds_its_training_finished(tmp_path: Path) -> None:
    with pytest.raises(KeyError), trained(trainer(tmp_path / "run"), stages([]), 5) as stopped:
        raise KeyError("judging")
    with trained(trainer(tmp_path / "run"), stages([]), 5) as again:
        assert torch.equal(again.model[0].weight, stopped.model[0].weight)
    assert (again.steps, again.samples) == (stopped.steps, stopped.samples)
