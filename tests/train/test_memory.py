"""Memory that training frees stays with the process until training ends."""

from __future__ import annotations

import ctypes
import gc
import re
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch

from tessera.train.memory import kept, unwatched

SIZE = 2**28


def resident() -> int:
    """Bytes of this process that are in memory."""
    found = re.search(r"^VmRSS:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    return 1024 * int(found[1])


def grown() -> list[bool]:
    """Whether a freed block is still with the process: within, after it, and for the next block."""
    before, found = resident(), []

    def taken_and_freed() -> None:
        block = torch.ones(SIZE // 4)
        del block

    with kept():
        taken_and_freed()
        found.append(resident() - before > SIZE // 2)
    found.append(resident() - before > SIZE // 2)
    taken_and_freed()
    return [*found, resident() - before > SIZE // 2]


@pytest.mark.skipif(sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc alone")
def test_a_large_block_stays_within_and_goes_back_after_it() -> None:
    # In a process of its own: here, others have left free memory behind, from which the block would be taken.
    told = subprocess.run(
        [sys.executable, "-c", "from tests.train.test_memory import grown; print(grown())"],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert told.stdout.strip() == "[True, False, False]"


def test_an_error_within_is_handed_on() -> None:
    with pytest.raises(KeyError), kept():
        raise KeyError


class Node:
    """What refers to itself, and only the collector frees."""

    def __init__(self) -> None:
        self.self = self


def test_within_the_collector_looks_through_new_objects_alone_and_afterwards_through_all() -> None:
    old = weakref.ref(Node())
    with unwatched():
        assert old() is None  # garbage went first
        assert gc.get_freeze_count() > 1000
        new = weakref.ref(Node())
        gc.collect()
        assert new() is None
    assert gc.get_freeze_count() == 0
