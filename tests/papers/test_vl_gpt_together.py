"""VL-GPT's three stages in two processes, or in parts one after the other, give the losses of one batch in one process.

Tiny published parts on CPU over gloo; what users type is tried by the slow tests.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tessera.assistant import load
from tests.papers.published_tiny import train_line
from tests.papers.together_children import ADAPTERS
from tests.train.tiny import metrics

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of all trainings; each ended well."""
    out = tmp_path_factory.mktemp("together")
    command = [sys.executable, "-m", "tests.papers.together_children", str(out)]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    for name, codes in json.loads(done.stdout.splitlines()[-1]).items():
        assert set(codes) == {0}, (out / f"{name}-0.log").read_text()
    return out


def assert_same_losses(one: Path, other: Path) -> None:
    first, second = metrics(one), metrics(other)
    assert [line["stage"] for line in first] == ["align"] * 3 + ["pretrain"] * 3 + ["instruct"] * 3
    assert len(second) == len(first)
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() - {"step", "stage", "lr", "gradient_norm"}:
            assert a[name] == pytest.approx(b[name], abs=1e-4), (a["step"], name)


@pytest.mark.parametrize("other", ["adapters-ddp", "adapters-fsdp", "adapters-parts", "whole-ddp", "whole-fsdp"])
def test_two_processes_and_accumulated_parts_give_the_losses_of_one_process(other: str, runs: Path) -> None:
    assert_same_losses(runs / f"{other.split('-')[0]}-one", runs / other)


def test_ddp_and_fsdp2_were_really_used(runs: Path) -> None:
    assert "2 processes (DDP)" in (runs / "adapters-ddp-0.log").read_text()
    assert "2 processes (FSDP2)" in (runs / "adapters-fsdp-0.log").read_text()


@pytest.mark.parametrize("other", ["adapters-ddp", "adapters-fsdp"])
def test_what_two_processes_save_is_the_model_of_one_process(other: str, runs: Path) -> None:
    ids = torch.tensor([[1, 300, 301, 302]])
    with torch.no_grad():
        one, two = (load(runs / name / "model", device="cpu").model(ids).logits for name in ("adapters-one", other))
    torch.testing.assert_close(one, two, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [["--multi_gpu"], ["--use_fsdp", "--fsdp_version", "2"]])
def test_accelerate_launch_of_the_command_gives_the_losses_of_one_process(
    flags: list[str], runs: Path, tmp_path: Path
) -> None:
    folders = runs / "parts"
    line = train_line(tmp_path / "run", json.loads((folders / "parts.json").read_text()), ADAPTERS)
    launcher = [sys.executable, "-m", "accelerate.commands.launch", *flags, "--num_processes", "2", "-m", "tessera"]
    done = subprocess.run(
        [*launcher, *line], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=280
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2 processes" in done.stderr + done.stdout
    assert_same_losses(runs / "adapters-one", tmp_path / "run")
