"""Two processes equal one: DDP, FSDP2, ranks without pictures, a killed rank; gloo on CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tessera.tokenizers.quantiser import Quantiser
from tests.train.test_resume import children
from tests.train.tiny import assert_equal_runs, metrics


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("together")
    return out, children("together", out)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
@pytest.mark.parametrize("recipe", ["", "towers-"])
def test_two_processes_equal_one(recipe: str, kind: str, runs: tuple[Path, dict[str, Any]]):
    # "towers-": one rank's batches hold text alone, and half of the model is left out there.
    out, found = runs
    codes = found["codes"]
    assert codes[f"{recipe}one"] == [0]
    assert codes[f"{recipe}{kind}"] == [0, 0], (out / f"{recipe}{kind}-0.log").read_text()
    one, two = metrics(out / f"{recipe}one"), metrics(out / f"{recipe}{kind}")
    assert len(one) == len(two) == (6 if recipe else 24)
    for a, b in zip(one, two, strict=True):
        for key in ("loss", "text", "square", "gradient_norm"):
            assert a[key] == pytest.approx(b[key], abs=1e-5), (a["step"], key)
    for folder in (out / f"{recipe}one" / "stages").iterdir():
        whole = load_file(folder / "weights.safetensors")
        other = load_file(out / f"{recipe}{kind}" / "stages" / folder.name / "weights.safetensors")
        assert max(float((whole[name] - other[name]).abs().max()) for name in whole) < 1e-5


def test_fsdp2_was_really_used(runs: tuple[Path, dict[str, Any]]):
    assert "FSDP2" in (runs[0] / "fsdp-0.log").read_text()
    assert "DDP" in (runs[0] / "ddp-0.log").read_text()


def test_codes_that_restart_are_the_same_in_all_processes_and_are_not_sharded(runs: tuple[Path, dict[str, Any]]):
    out, found = runs
    assert found["codes"]["coded"] == [0, 0], (out / "coded-0.log").read_text()
    first, second = (load_file(out / f"coded-{rank}.safetensors")["codes"] for rank in (0, 1))
    assert torch.equal(first, second)
    torch.manual_seed(0)
    torch.nn.Linear(8, 4)
    turned = torch.nn.functional.cosine_similarity(Quantiser(4, 16).codes.weight, first) < 0.99
    assert turned.float().mean() > 0.5, "most codes were put elsewhere"
    assert found["codes"]["coded sharded"] == [2, 2]
    assert "FSDP2 would undo what" in (out / "coded-sharded-0.log").read_text()


def test_a_killed_process_ends_the_other_within_the_timeout_and_the_run_resumes(runs: tuple[Path, dict[str, Any]]):
    out, found = runs
    assert found["codes"]["killed"] == [2, -9]
    assert found["seconds"] < 60
    assert "process 0 of 2 lost touch with another one" in (out / "killed-0.log").read_text()
    assert found["codes"]["killed again"] == [0, 0]
    assert_equal_runs(out / "ddp", out / "killed")


def test_a_signal_to_one_process_saves_and_ends_both_and_the_run_resumes(runs: tuple[Path, dict[str, Any]]):
    out, found = runs
    assert found["codes"]["asked"] == [143, 143]
    assert "stopped by SIGTERM after a checkpoint at step 10" in (out / "asked-0.log").read_text()
    assert found["codes"]["asked again"] == [0, 0]
    assert metrics(out / "asked") == metrics(out / "ddp")


@pytest.mark.slow
@pytest.mark.parametrize("flags", [["--multi_gpu"], ["--use_fsdp", "--fsdp_version", "2"]])
def test_accelerate_launch_equals_one_process(flags: list[str], runs: tuple[Path, dict[str, Any]], tmp_path: Path):
    launcher = [sys.executable, "-m", "accelerate.commands.launch", *flags, "--num_processes", "2"]
    command = [*launcher, "-m", "tests.train.children", "launched", str(tmp_path / "run")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    sharded = str("--use_fsdp" in flags).lower()
    assert f'{{"processes": 2, "sharded": {sharded}}}' in done.stdout
    for a, b in zip(metrics(runs[0] / "one"), metrics(tmp_path / "run"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
