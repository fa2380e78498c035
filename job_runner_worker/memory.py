"""What the C library does with memory that is free again."""

from __future__ import annotations

import ctypes

_M_MMAP_THRESHOLD = -3
_LARGE_BYTES = 128 * 1024


def give_back_at_once() -> None:
    """Let large blocks be the kernel's again as soon as they are free.

    So it is from the start; but after the first of them is free, glibc keeps blocks of
    that size for itself. The copies of a long log then leave holes that the next log,
    which is longer, does not fit into. Source: mallopt(3), M_MMAP_THRESHOLD. Other C
    libraries have no such function, and no such habit.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
