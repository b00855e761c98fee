"""Which files a training step goes through, from the command to the loss."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import tessera

HOME = Path(tessera.__file__).parent
DISPATCH = "cli/program.py"  # finds the command; the count begins at the command's own file


@contextmanager
def files_on_the_way_to(place: str) -> Iterator[list[str]]:
    """While it is open, the first call of the loss at `place` ("module:name") fills the list that it gives with the
    library's files on the stack, each once, from the command's file to that of the loss."""
    module, _, name = place.partition(":")
    loss = getattr(import_module(module), name)
    found: list[str] = []

    def watched(*args: Any, **kwargs: Any) -> Any:
        if not found:
            stack, frame = [loss.__code__.co_filename], sys._getframe(1)
            while frame is not None:
                stack.append(frame.f_code.co_filename)
                frame = frame.f_back
            files = [Path(file) for file in reversed(stack) if Path(file).is_relative_to(HOME)]
            found.extend(dict.fromkeys(file.relative_to(HOME).as_posix() for file in files))
            if DISPATCH in found:
                del found[: found.index(DISPATCH) + 1]
        return loss(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(import_module(module), name, watched)
        yield found
