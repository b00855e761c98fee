"""Trainings from the command line, each in a forked child of one process that has imported the libraries once.

python -m tests.cli.trainings DATA OUT      prints the exit codes as JSON; OUT/NAME.log holds what each said
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # optimisers import it at their first step: once here, not once a child
from safetensors import SafetensorError

from tessera.cli import main
from tessera.models.diffusion import painter
from tessera.papers import vl_gpt
from tessera.train import checkpoint

SMALL = (
    "tokenizer.width=32 tokenizer.depth=1 tokenizer.heads=2 tokenizer.mlp_width=32 aligned=0 align.batch=24"
    " pretrain.batch=1 instruct.batch=1"
)
FULL = "Error while serializing: I/O error: No space left on device (os error 28)"


def line(data: Path | str, out: Path | str, *more: str) -> list[str]:
    """A training of one step a stage."""
    words = ["train", "vl-gpt", "--data", str(data), "--out", str(out), "--steps", "3", "--precision", "fp32"]
    return [*words, "--set", *SMALL.split(), *more]


def child(words: list[str], log: Path, prepare: Callable[[], None] = lambda: None) -> int:
    """The exit code of `tessera` with these words, negative for a signal."""
    pid = os.fork()
    if not pid:
        with log.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        code = 99
        try:
            prepare()
            code = main(words)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def at_save(number: int, act: Callable[[], None], owner: Any = checkpoint) -> Callable[[], None]:
    """Let `act` happen instead of the `number`-th file of weights that `owner` writes."""

    def prepare() -> None:
        save, count = owner.save_file, [0]

        def spoilt(*arguments: Any, **options: Any) -> None:
            count[0] += 1
            if count[0] == number:
                act()
            save(*arguments, **options)

        owner.save_file = spoilt

    return prepare


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fill() -> None:
    raise SafetensorError(FULL)


def without_model(run: Path, copy: Path) -> Path:
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "model")
    return copy


def all_of_them(data: Path, out: Path) -> dict[str, int]:
    """A training; one killed and one out of disk in the save of its second stage, each resumed; and one out of disk
    when it writes its model, tried again."""
    codes = {}

    def train(name: str, folder: str, *more: str, prepare: Callable[[], None] = lambda: None) -> None:
        codes[name] = child(line(data, out / folder, *more), out / f"{name}.log", prepare)

    train("run", "run")
    train("killed", "killed", prepare=at_save(2, die))
    train("killed again", "killed", "--resume")
    train("full", "full", prepare=at_save(2, fill))
    train("full again", "full", "--resume")
    without_model(out / "run", out / "no model")
    train("no model", "no model", "--resume", prepare=at_save(2, fill, painter))
    shutil.copytree(out / "no model", out / "left by no model")
    train("no model again", "no model", "--resume")
    return codes


if __name__ == "__main__":
    torch.set_num_threads(1)
    vl_gpt.write_report = lambda *_: None  # type: ignore[assignment]
    sys.stdout.write(json.dumps(all_of_them(Path(sys.argv[1]), Path(sys.argv[2]))) + "\n")
