"""VL-GPT killed at random moments and resumed equals VL-GPT left alone, bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.train.tiny import assert_equal_runs

ROOT = Path(__file__).parents[2]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Twenty captioned pictures, few enough that their remembered features are met again, and a broken one."""
    folder = tmp_path / "mine"
    folder.mkdir()
    for index in range(20):
        pixels = np.random.default_rng(index).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"picture number {index}")
    (folder / "0.png").write_bytes(b"")
    return folder


@pytest.mark.slow
def test_five_kills_lose_nothing_of_weights_optimiser_log_and_order(data: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.papers.resume_children", str(data), str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    codes = json.loads(done.stdout.splitlines()[-1])
    assert codes == [0, *[-9] * 5, 0], (tmp_path / "killed.log").read_text()
    assert_equal_runs(tmp_path / "alone", tmp_path / "killed")
    for file in sorted((tmp_path / "alone" / "model").rglob("*")):
        if file.is_file():
            other = tmp_path / "killed" / "model" / file.relative_to(tmp_path / "alone" / "model")
            assert file.read_bytes() == other.read_bytes(), file
    lines = [json.loads(line) for line in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    assert Counter(line["stage"] for line in lines) == {"align": 4, "pretrain": 1, "instruct": 7, "write": 12}
    assert "resumed from" in (tmp_path / "killed.log").read_text()
