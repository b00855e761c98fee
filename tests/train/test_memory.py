"""Memory that training frees stays with the process until training ends."""

from __future__ import annotations

import ctypes
import re
import sys
from pathlib import Path

import pytest
import torch

from tessera.train.memory import kept

SIZE = 2**28


def resident() -> int:
    """Bytes of this process that are in memory."""
    found = re.search(r"^VmRSS:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    return 1024 * int(found[1])


@pytest.mark.skipif(sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc alone")
def test_a_large_block_stays_within_and_goes_back_after_it() -> None:
    before = resident()
    with kept():
        block = torch.ones(SIZE // 4)
        del block
        assert resident() - before > SIZE // 2
    assert resident() - before < SIZE // 2
    block = torch.ones(SIZE // 4)
    del block
    assert resident() - before < SIZE // 2


def test_an_error_within_is_handed_on() -> None:
    with pytest.raises(KeyError), kept():
        raise KeyError
