"""N steps equal k steps, a kill and N - k steps, in bytes: weights, optimiser, generators, log, order of samples."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tessera.train.engine import Callback, Event, Trainer
from tests.train.tiny import assert_equal_runs, metrics, two_stages


def children(scenario: str, out: Path) -> dict[str, Any]:
    """What `tests.train.children` reports of a scenario."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.train.children", scenario, str(out)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    out = tmp_path_factory.mktemp("run") / "uninterrupted"
    Trainer(out, save_every=3, device="cpu").run(two_stages())
    return out


class Killed(BaseException):
    """As a kill: nothing in the engine may catch it."""


@pytest.mark.parametrize("step", [1, 3, 5, 6, 11, 12, 13, 18, 23, 24])
def test_killed_between_steps_and_resumed_equals_uninterrupted(step: int, uninterrupted: Path, tmp_path: Path):
    # Epochs end at steps 6 and 12 (and every third of stage two, from 12); a checkpoint is due every third step.
    def die(event: Event) -> None:
        if event.step == step:
            raise Killed

    out = tmp_path / "run"
    with pytest.raises(Killed):
        Trainer(out, save_every=3, device="cpu", callbacks=[Callback(1, die)]).run(two_stages())
    Trainer(out, save_every=3, device="cpu", resume=True).run(two_stages())
    assert_equal_runs(uninterrupted, out)


def test_log_holds_every_step_once_and_epochs_differ_in_order(uninterrupted: Path):
    found = metrics(uninterrupted)
    assert [one["step"] for one in found] == list(range(1, 25))
    first, second = ([one["order"] for one in found[start : start + 6]] for start in (0, 6))
    assert first != second


def test_resuming_a_finished_run_trains_nothing_and_loads_its_weights(uninterrupted: Path):
    before = (uninterrupted / "metrics.jsonl").read_bytes()
    stages = list(two_stages())
    Trainer(uninterrupted, save_every=3, device="cpu", resume=True).run(stages)
    assert (uninterrupted / "metrics.jsonl").read_bytes() == before
    again = list(two_stages())
    Trainer(uninterrupted, save_every=3, device="cpu", resume=True).run(again)
    for one, other in zip(stages[1].model.parameters(), again[1].model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_five_kills_at_random_moments_and_signals_lose_nothing(uninterrupted: Path, tmp_path: Path):
    found = children("kills", tmp_path)
    assert found["codes"] == [-9] * 5 + [0, 143, 130, 0]
    assert_equal_runs(uninterrupted, tmp_path / "killed")
    assert_equal_runs(uninterrupted, tmp_path / "asked")


def test_kills_inside_saves_leave_the_checkpoint_before_whole(uninterrupted: Path, tmp_path: Path):
    found = children("saves", tmp_path)
    assert found["codes"] == [-9] * 7 + [0]
    assert "left by a run that was killed while saving" in found["log"]
    assert not list((tmp_path / "killed").glob("*/.*"))
    assert_equal_runs(uninterrupted, tmp_path / "killed")
