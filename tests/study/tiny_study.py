"""A study that other processes can make, whose arms leave marks in a folder.

python -m tests.study.tiny_study WAY MARKS WORK      runs it in two processes
"""

from __future__ import annotations

import os
import signal
import sys
from functools import partial
from pathlib import Path

from tessera.errors import UserError
from tessera.study.design import Arm, Claim, Outcome, Study
from tessera.study.engine import run

ARMS = {"new": 0.8, "old": 0.5}
CLAIM = Claim(name="better", metric="score", arm="new", against="old", expect="higher", published="+3 points")


def make(way: str, marks: Path) -> Study:
    """Two arms.

    Args:
        way: "alone" trains and no more; in "together" the first arm of seeds 0 and 1 train at once or never; in
            "killed" the first training of seed 1 is killed, once; "failing" raises; "endless" never ends.
        marks: where each training leaves a line.
    """
    arms = [Arm(name=name, run=partial(_trained, way, marks, name)) for name in ARMS]
    return Study(slug="tiny", title="A tiny study", arms=arms, claims=[CLAIM])


def studied(slug: str, name: str | None, data: Path | None, model: Path | None) -> Study:
    """The same, as `tessera.papers.registry` asks for it."""
    assert name is not None and data is not None
    return make(name, data)


def _trained(way: str, marks: Path, arm: str, seed: int) -> Outcome:
    with open(marks / f"{arm}-{seed}", "a", encoding="utf-8") as file:
        file.write(f"{os.getpid()}\n")
    if way == "together" and arm == "new" and seed < 2:
        _meet(marks / "pipe", os.O_WRONLY if seed else os.O_RDONLY)
    if way == "killed" and (arm, seed) == ("new", 1) and (marks / "pipe").exists():
        (marks / "pipe").unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    if way == "failing":
        raise UserError("the pictures of this study are gone")
    if way == "endless":
        _meet(marks / "pipe", os.O_WRONLY)
        signal.pause()
    scores = [ARMS[arm] + 0.01 * seed + 0.001 * item for item in range(20)]
    return Outcome(metrics={"loss": 1 - ARMS[arm]}, items={"score": scores}, steps=10, samples=80)


def _meet(pipe: Path, flags: int) -> None:
    """Opens one end of a pipe, which waits until another process opens the other."""
    os.close(os.open(pipe, flags))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is started deaf to it
    chosen, given = sys.argv[1], [Path(word) for word in sys.argv[2:]]
    again = partial(make, chosen, given[0])
    run(again(), 3, out=given[1] / "result.json", work=given[1], processes=2, make=again)
