"""The memory of our own programs, as the C library manages it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8  # glibc's malloc.h


def keep_freed_memory() -> None:
    """Let the C library keep large blocks that are freed, instead of handing each back to the system.

    A pass over a batch on the CPU frees and takes the same blocks of tens of megabytes over and over, and a fresh one
    costs a page fault every 4 KiB: a tenth of a training step in all. The commands call this before anything else; a
    library must not decide it for its host. It does nothing outside of Linux with glibc, and nothing where a `MALLOC_`
    variable of the environment says how memory is to be managed.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, 64 << 20)):
            mallopt(option, value)
