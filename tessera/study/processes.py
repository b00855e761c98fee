"""Cells of a study in several processes at once: fresh interpreters, each with its share of the cores.

Each process makes the study anew, begins with a seed of its own and goes on with what nobody has in hand. What it
prints goes to a file in the study's folder. Processes end with the one that started them.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from tessera.errors import TesseraError, TrainingStopped
from tessera.study import cells
from tessera.study.design import Study
from tessera.study.machine import cores

THREADS = "OMP_NUM_THREADS"
LOGS = "processes"
PATIENCE = 60.0  # seconds in which a process that is told to stop writes a checkpoint


def threads_each(processes: int) -> int:
    """How many threads each of so many processes gets; fewer where OMP_NUM_THREADS says so."""
    share, said = max(1, cores() // processes), os.environ.get(THREADS, "")
    return min(share, int(said)) if said.isdecimal() and int(said) else share


def log_of(folder: Path, place: int) -> Path:
    """What the process at this place, from 0, printed last."""
    return folder / LOGS / f"{place + 1}.log"


def train_all(
    make: Callable[[], Study], seeds: Sequence[int], folder: Path, processes: int, finished: Callable[[str, int], None]
) -> None:
    """Train every cell that is not kept yet, but for those that another run has in hand.

    Args:
        make: the study; a function that pickles, with arguments that do.
        folder: of the study.
        finished: is told the arm's name and the seed of each cell.

    Raises:
        TesseraError: as the process in which an arm failed raised it; the other processes are stopped.
        TrainingStopped: a process was killed or broke off.
    """
    context = get_context("spawn")  # a fork would inherit locked threads, and cannot use CUDA
    children: dict[Connection, Any] = {}
    try:
        with _threads(threads_each(processes)):
            for place in range(processes):
                receiver, sender = context.Pipe(duplex=False)
                child = context.Process(target=_work, args=(make, list(seeds), folder, place, processes, sender))
                child.start()
                sender.close()  # ours: the pipe then ends with the child
                children[receiver] = child
        _listen(children, folder, finished)
    finally:
        _stop(children.values())


def _listen(children: Mapping[Connection, Any], folder: Path, finished: Callable[[str, int], None]) -> None:
    places = {receiver: place for place, receiver in enumerate(children)}
    talking = set(children)
    while talking:
        for receiver in wait(list(talking)):
            assert isinstance(receiver, Connection)
            try:
                message = receiver.recv()
            except (EOFError, OSError):
                talking.remove(receiver)
                children[receiver].join()
                if children[receiver].exitcode:
                    place = places[receiver]
                    raise _broken(place, len(places), children[receiver].exitcode, log_of(folder, place)) from None
                continue
            if isinstance(message, TesseraError):
                raise message
            finished(*message)


def _broken(place: int, number: int, code: int, log: Path) -> TrainingStopped:
    """What is said of a process that ended with this code, or by a signal, which is negative."""
    stopped = -code if code < 0 else code - 128
    how = "broke off"
    if stopped in set(signal.Signals):
        how = f"was ended by {signal.Signals(stopped).name}"
        how += ", perhaps for want of memory" if stopped == getattr(signal, "SIGKILL", None) else ""
    return TrainingStopped(
        f"process {place + 1} of {number} {how}; {log} holds what it said, and what was finished is kept: run the same"
        " command to go on"
    )


def _stop(children: Any) -> None:
    """End those that are left; one that trains writes a checkpoint first."""
    alive = [child for child in children if child.is_alive()]
    for child in alive:
        child.terminate()
    for child in alive:
        child.join(PATIENCE)
        if child.is_alive():
            child.kill()
            child.join()


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Processes that are started within have so many threads: libraries read the variable when they are loaded."""
    before = os.environ.get(THREADS)
    os.environ[THREADS] = str(number)
    try:
        yield
    finally:
        if before is None:
            del os.environ[THREADS]
        else:
            os.environ[THREADS] = before


def _work(
    make: Callable[[], Study], seeds: list[int], folder: Path, place: int, processes: int, sender: Connection
) -> None:
    """The life of a child."""
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # Ctrl-C in a terminal reaches the parent alone, which then stops its children, once
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_follow_parent, daemon=True).start()
    _print_into(log_of(folder, place))
    try:
        study = make()
        start = place * len(seeds) // processes
        # A seed of its own first: arms of one seed often go on from the same trained parts.
        for seed in (*seeds[start:], *seeds[:start]):
            for arm in study.arms:
                if not cells.file_of(study, arm, seed, folder).is_file() and cells.train(
                    study, arm, seed, folder, wait=False
                ):
                    sender.send((arm.name, seed))
    except TesseraError as error:
        if hasattr(error, "exit_code"):  # a signal, after a checkpoint
            sys.exit(error.exit_code)
        sender.send(error)


def _leave(number: int, frame: Any) -> None:
    sys.exit(128 + number)


def _follow_parent() -> None:
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


def _print_into(file: Path) -> None:
    """Standard output and error of this process and its libraries."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "wb") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
