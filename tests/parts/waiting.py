"""Waiting in tests for what another task, thread or process brings about: as long as it takes, within generous limits.

A limit says that something never came, not how fast it has to be: beside other work all takes many times as long.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Awaitable, Callable
from subprocess import Popen
from typing import Any

import anyio

LIMIT_S = 15.0
"""Below the 20 s of a whole test, so that it is told what never came."""
LONG_S = 120.0
"""For processes that load models, in tests that have the time."""


async def until(condition: Callable[[], Any | Awaitable[Any]], limit_s: float = LIMIT_S) -> Any:
    """Polls a condition, sync or async, and returns its first true value.

    Raises AssertionError with the condition's source when the limit is over."""
    ends_s = anyio.current_time() + limit_s
    while True:
        found = condition()
        if inspect.isawaitable(found):
            found = await found
        if found:
            return found
        assert anyio.current_time() < ends_s, _never(condition, limit_s)
        await anyio.sleep(0.005)


def wait_until(condition: Callable[[], Any], limit_s: float = LIMIT_S, *, while_runs: Popen[Any] | None = None) -> Any:
    """The same for tests without an event loop; the process `while_runs` must not end before."""
    ends_s = time.monotonic() + limit_s
    while not (found := condition()):
        assert while_runs is None or while_runs.poll() is None, f"it ended before: {_source(condition)}"
        assert time.monotonic() < ends_s, _never(condition, limit_s)
        time.sleep(0.02)
    return found


def _never(condition: Callable[[], Any], limit_s: float) -> str:
    return f"within {limit_s:g} s this never held: {_source(condition)}"


def _source(condition: Callable[[], Any]) -> str:
    try:
        return inspect.getsource(condition).strip()
    except (OSError, TypeError):
        return repr(condition)
