"""Tuning of glibc's allocator for torch on a CPU.

A forward pass allocates and frees the same few large buffers thousands of times; by default glibc gives them back to
the kernel every time and page-faults them in again (up to 40 times slower on a small machine).
"""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


def keep_memory() -> None:
    """Keep freed memory in the process and use one arena for all threads. Does nothing without glibc."""
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    try:
        libc.mallopt  # noqa: B018  looks the symbol up; musl has none
    except AttributeError:
        return
    for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 64 << 20), (_M_ARENA_MAX, 1)):
        libc.mallopt(option, value)
