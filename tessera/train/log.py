"""What a run says: metrics to a file, timings to another, progress to the terminal.

`metrics.jsonl` holds only what follows from data, seed and settings, so a resumed run has the same file, byte
for byte, as one that was never stopped. `timings.jsonl` holds the clock.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from tessera.errors import TrainingStopped, UserError
from tessera.files import write_text

PLAIN_SECONDS = 10.0  # between two progress lines where standard error is no terminal


def cut(file: Path, step: int) -> None:
    """Drop the lines of `file` after `step`, and a last line that was cut short."""
    if not file.exists():
        return
    held, kept = file.read_text(encoding="utf-8"), []
    for line in held.splitlines():
        try:
            if json.loads(line)["step"] > step:
                continue
        except (ValueError, KeyError, TypeError):
            continue
        kept.append(line + "\n")
    if "".join(kept) != held:
        write_text(file, "".join(kept))


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl` or `timings.jsonl`; none where the file is absent."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


class MetricsLog:
    """Appends to `metrics.jsonl` and `timings.jsonl` of a run folder, and to TensorBoard where asked.

    Nothing is touched before the first line: a run that is refused before its first step leaves no trace.

    Args:
        step: the step that the run goes on from; later lines are cut.

    Raises:
        UserError: TensorBoard is asked for and not installed.
    """

    def __init__(self, out: Path, step: int, tensorboard: bool = False):
        self._out, self._step = out, step
        self._files: list[TextIO] = []
        self._writer = _board_writer() if tensorboard else None
        self._board: Any = None

    def write(self, metrics: Mapping[str, Any], timing: Mapping[str, Any]) -> None:
        """One line in each file, flushed. Both mappings hold `step` and `stage`.

        Raises:
            TrainingStopped: the disk is full, or gone.
        """
        if not self._files:
            self._open()
        for file, record in zip(self._files, (metrics, timing), strict=True):
            try:
                file.write(json.dumps(record, allow_nan=False) + "\n")
                file.flush()
            except OSError as error:
                raise TrainingStopped(
                    f"{file.name} cannot be written: {error.strerror}; checkpoints saved before are whole"
                ) from error
        if self._board is not None:
            for key, value in (*metrics.items(), *timing.items()):
                if isinstance(value, (int, float)) and key != "step":
                    self._board.add_scalar(f"{metrics['stage']}/{key}", value, metrics["step"])

    def _open(self) -> None:
        self._out.mkdir(parents=True, exist_ok=True)
        for name in ("metrics.jsonl", "timings.jsonl"):
            cut(self._out / name, self._step)
            self._files.append((self._out / name).open("a", encoding="utf-8"))
        if self._writer is not None:
            self._board = self._writer(str(self._out / "tensorboard"), purge_step=self._step + 1)

    def sync(self) -> None:
        """Bring the lines to the disk: called before each checkpoint, which promises them."""
        for file in self._files:
            os.fsync(file.fileno())

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            with contextlib.suppress(OSError):  # a full disk was reported by `write`
                file.close()
        if self._board is not None:
            self._board.close()


def _board_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError("TensorBoard is not installed; pip install tensorboard, or leave tensorboard off") from error
    return SummaryWriter


class Reporter:
    """Progress on standard error: a live bar in a terminal, else one plain line every ten seconds.

    Speed is a running mean. Time left counts the steps of all stages that are known, at the speed of this
    one.
    """

    def __init__(self, active: bool):
        self.active = active
        self.console = Console(stderr=True, highlight=False)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._seconds = 0.0
        self._spoke = time.monotonic()

    def note(self, text: str) -> None:
        """One line that stays."""
        if not self.active:
            return
        if self._bar is not None:
            self._bar.console.print(text, markup=False)
        else:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()

    def start(self, stage: str, done: int, steps: int) -> None:
        """A stage begins, `done` of its `steps` being behind it."""
        self._seconds = 0.0
        if self.active and self.console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"))
            self._bar = Progress(*columns, console=self.console)
            self._task = self._bar.add_task(stage, total=steps, completed=done, text="")
            self._bar.start()

    def step(self, stage: str, done: int, steps: int, left: int, loss: float, seconds: float) -> None:
        """A step ended that took `seconds`; `left` steps are still to do in all stages."""
        self._seconds = seconds if not self._seconds else 0.95 * self._seconds + 0.05 * seconds
        speed, time_left = 1 / self._seconds, clock(left * self._seconds)
        text = f"{done}/{steps} loss {loss:.4f} {speed:.2f} steps/s {time_left} left"
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, text=text)
        elif self.active and (time.monotonic() - self._spoke > PLAIN_SECONDS or done == steps):
            self._spoke = time.monotonic()
            self.note(f"{stage} {text}")

    def stop(self) -> None:
        """The stage ended, one way or another."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
