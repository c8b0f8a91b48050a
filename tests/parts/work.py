"""What a piece of code costs, counted instead of timed: the same on every machine, however busy it is."""

from __future__ import annotations

import gc
import sys
import tracemalloc
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def calls(work: Callable[[], object]) -> int:
    """The functions that `work` calls, Python's and C's."""
    counted = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal counted
        counted += event in ("call", "c_call")

    before = sys.getprofile()
    with uncollected():
        sys.setprofile(count)
        try:
            work()
        finally:
            sys.setprofile(before)
    return counted


@contextmanager
def uncollected() -> Iterator[None]:
    """No garbage is collected meanwhile: that would run finalizers of other tests, and Hypothesis' callback."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def peak_bytes(work: Callable[[], object]) -> int:
    """The memory that `work` holds at most beyond what was there."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
