"""What goes wrong for a user, each as one plain sentence: the thing, the value, the way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TesseraError(Exception):
    """Base of every error that Tessera raises on purpose. The command line prints it and exits with 2."""


class UserError(TesseraError):
    """A wrong option, name or value."""


class DataError(TesseraError):
    """Data that cannot be read at all: a missing folder, an empty set, too many bad samples."""


class BadSample(TesseraError):
    """One sample that cannot be used. Loaders skip it, count it and name it in the log."""


class CheckpointError(TesseraError):
    """A checkpoint or weights file that is damaged, belongs to another run, or is of a refused format."""


class TrainingStopped(TesseraError):
    """Training ended before its last step for a stated reason: a loss that is not a number, no label in a batch."""


def reason(error: BaseException) -> str:
    """What a library's error says, on one line, or its kind where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def nearest(name: str, choices: Iterable[str]) -> str:
    """The tail of an 'unknown name' sentence: the closest choice, or the list of all where none is close."""
    known = sorted(choices)
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(known)}"
