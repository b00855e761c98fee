"""Memory of the processor that training frees and asks for again, step after step."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

# Names and defaults of malloc.h; a block from the threshold on comes from the system, and goes back when it is freed.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT, _DEFAULT = 2**31 - 1, 128 * 1024


@contextmanager
def kept() -> Iterator[None]:
    """Within, what is freed stays with the process. By default glibc gives large blocks back to the system, which
    clears every page anew when the next step takes them: an eighth of a step of VL-GPT on a processor. Elsewhere
    nothing changes."""
    library = ctypes.CDLL(None)
    able = hasattr(library, "mallopt") and hasattr(library, "malloc_trim")
    if able:
        library.mallopt(_MMAP_THRESHOLD, _KEPT)
        library.mallopt(_TRIM_THRESHOLD, _KEPT)
    try:
        yield
    finally:
        if able:
            library.mallopt(_MMAP_THRESHOLD, _DEFAULT)
            library.mallopt(_TRIM_THRESHOLD, _DEFAULT)
            library.malloc_trim(0)
