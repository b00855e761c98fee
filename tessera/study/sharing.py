"""What several processes of one study must not do twice at once: locks that vanish with their process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

WHERE = "locks"


def alone(work: Path, path: Path) -> FileLock:
    """A lock for what is written to `path`; entered, it waits until no other process has it.

    Its file stays, in a folder of `work`, and is in nobody's way: the system lets go of it when a process ends,
    however it ends.

    Args:
        work: the folder of the study.
        path: in that folder; names are the study's own.
    """
    folder = work / WHERE
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f"{path.name}.lock")


def prepared(work: Path, path: Path, write: Callable[[], object]) -> Path:
    """`path`, which arms share: the first process that needs it writes it, the others wait for it.

    Args:
        work: the folder of the study.
        write: writes `path` whole or not at all, as `tessera.files` does.
    """
    if not path.exists():
        with alone(work, path):
            if not path.exists():
                write()
    return path
