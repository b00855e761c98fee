"""`tessera train vl-gpt`, killed five times and resumed, beside the same training left alone.

python -m tests.papers.resume_children DATA OUT      prints the exit codes as JSON
"""

from __future__ import annotations

import functools
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
import torch._dynamo  # noqa: F401  optimisers import it at their first step: once here, not once a child

from tessera.cli import main
from tessera.papers import vl_gpt
from tessera.train.engine import Trainer
from tests.train.children import end, start

STEPS = (0, 2, 5, 9, 14)  # lines of the log after which, a random moment of less than a step later, it is killed
MOMENT = 0.03  # seconds
SETTINGS = ("align.batch=8", "pretrain.batch=2", "instruct.batch=2")


def train(data: Path, out: Path) -> None:
    """Twelve steps of the three stages, and twelve of the regression head."""
    line = ["train", "vl-gpt", "--data", str(data), "--out", str(out), "--steps", "12", "--seed", "7", "--resume"]
    assert main([*line, "--workers", "2", "--set", *SETTINGS]) == 0


def lines(out: Path) -> int:
    """Of the log of a training."""
    file = out / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def kill_after(out: Path, pid: int, steps: int, jitter: float) -> int:
    """Kill a child once its log has `steps` lines and `jitter` seconds went by; gives its exit code."""
    while lines(out) < steps and os.waitpid(pid, os.WNOHANG)[0] == 0:
        time.sleep(0.001)
    time.sleep(jitter)
    os.kill(pid, signal.SIGKILL)
    return end(pid)


def kills(data: Path, out: Path) -> list[int]:
    """Exit codes: alone; five times killed; to the end."""
    draws = random.Random(3)
    codes = [end(start(lambda: train(data, out / "alone"), out / "alone.log"))]
    for steps in STEPS:
        pid = start(lambda: train(data, out / "killed"), out / "killed.log")
        codes.append(kill_after(out / "killed", pid, steps, draws.uniform(0, MOMENT)))
    return [*codes, end(start(lambda: train(data, out / "killed"), out / "killed.log"))]


if __name__ == "__main__":
    torch.set_num_threads(1)
    vl_gpt.Trainer = functools.partial(Trainer, save_every=3)  # type: ignore[misc, assignment]
    vl_gpt.write_report = lambda *_: None  # type: ignore[assignment]
    sys.stdout.write(json.dumps(kills(Path(sys.argv[1]), Path(sys.argv[2]))) + "\n")
