"""Memory of the processor: what training frees and asks for again, step after step, and what Python looks through for
garbage meanwhile."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Names of malloc.h. A block from the second on comes from the system alone and goes back when it is freed; more than
# the first at the end of the heap goes back as well.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_NEVER = 2**31 - 1
_AFTER = {_MMAP_THRESHOLD: 2**25, _TRIM_THRESHOLD: 2**26}  # to which glibc itself raises them at most


@contextmanager
def kept() -> Iterator[None]:
    """Within, what is freed stays with the process. By default glibc gives large blocks back to the system, which
    clears every page anew when the next step takes them. Elsewhere nothing changes."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    able = hasattr(library, "mallopt") and hasattr(library, "malloc_trim")
    if library is not None and able:
        for name in _AFTER:
            library.mallopt(name, _NEVER)
    try:
        yield
    finally:
        if library is not None and able:
            for name, value in _AFTER.items():
                library.mallopt(name, value)
            library.malloc_trim(0)


@contextmanager
def unwatched() -> Iterator[None]:
    """Within, Python's collector looks through objects that are made there alone. A look through all that PyTorch and
    transformers have made takes a quarter of a second, and reading samples sets one off every few dozen steps. What is
    garbage already goes first."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
