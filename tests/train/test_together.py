"""Two processes equal one: DDP, FSDP2, ranks without pictures, a killed rank; gloo on CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

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


def test_a_killed_process_ends_the_other_within_the_timeout_and_the_run_resumes(
    runs: tuple[Path, dict[str, Any]],
):
    out, found = runs
    survivor, killed = found["codes"]["lethal"]
    assert killed == -9
    assert survivor == 2
    assert found["seconds"] < 60
    assert "process 0 of 2 lost touch with another one" in (out / "lethal-0.log").read_text()
    assert found["codes"]["revived"] == [0, 0]
    assert_equal_runs(out / "ddp", out / "lethal")
