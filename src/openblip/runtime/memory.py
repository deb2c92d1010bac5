"""What the system's allocator does with memory that is freed, where it can be told: with glibc.

A training step wants again at once what the one before has freed. A program that waits for somebody
wants the opposite: that what it has read and not kept is there for others.
"""

import ctypes
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# Names of glibc's <malloc.h>.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_BEYOND_ANY_TENSOR = 1 << 30
_NEVER = 2**31 - 1
# glibc's DEFAULT_MMAP_THRESHOLD_MAX with 8-byte words.
_LARGEST_ADJUSTED = 32 << 20
_LARGE = 1 << 20
# One entry for each thread in `large_blocks_returned`: the last one that leaves undoes it.
_inside: list[None] = []
_lock = threading.Lock()
# Blocks from this size on are given back when nobody is inside; None until it was decided.
_outside: int | None = None


def keep_freed_memory() -> bool:
    """Keep what is freed instead of giving it back to the system, which clears it page by page.

    glibc does give back a large block when it is freed, and the top of the heap whenever much of
    it is free: both after every step. Affects the whole process, whose memory stays at the most
    that a step takes, until `return_freed_memory`.

    Returns:
        whether it is so from here on; False, and nothing changed, where there is no glibc.
    """
    libc = _glibc()
    if libc is None:
        return False
    _return_from(_BEYOND_ANY_TENSOR)
    libc.mallopt(_TRIM_THRESHOLD, _NEVER)
    return True


def return_freed_memory() -> None:
    """Give what is free now back to the system, and from here on what is freed.

    glibc raises both thresholds by itself as large blocks are freed, until they are set once: that
    cannot be undone. So they stay where it would have brought them in the course of a run.
    """
    libc = _glibc()
    if libc is not None:
        _return_from(_LARGEST_ADJUSTED)
        libc.mallopt(_TRIM_THRESHOLD, 2 * _LARGEST_ADJUSTED)
        libc.malloc_trim(0)


@contextmanager
def large_blocks_returned() -> Iterator[None]:
    """Within it large blocks go back to the system when they are freed, and leave no holes.

    glibc keeps freed blocks of up to 32 MB for the next ones, once it has seen some; between them
    lies what is kept, so that most of them can never be given back. Affects the whole process while
    any thread is inside; tensors of a model that computes meanwhile cost page faults.
    """
    libc = _glibc()
    if libc is None:
        yield
        return
    with _lock:
        _inside.append(None)
        libc.mallopt(_MMAP_THRESHOLD, _LARGE)
    try:
        yield
    finally:
        with _lock:
            _inside.pop()
            if not _inside:
                # Where glibc would have brought it, which it does no more once it was set.
                libc.mallopt(_MMAP_THRESHOLD, _outside or _LARGEST_ADJUSTED)


def trim_memory() -> None:
    """Give what is free at this moment back to the system; what is freed later stays as it is used.

    For who has read much, kept little of it, and then waits.
    """
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _return_from(size: int) -> None:
    """From here on, or when the last thread inside `large_blocks_returned` leaves."""
    global _outside
    libc = _glibc()
    with _lock:
        _outside = size
        if libc is not None and not _inside:
            libc.mallopt(_MMAP_THRESHOLD, size)


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") else None
