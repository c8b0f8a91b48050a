"""Waiting in tests for what another task, thread or process brings about: as long as it takes, within generous limits.

A limit says that something never came, not how fast it has to be: beside other work all takes many times as long.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from subprocess import Popen
from typing import Any

import anyio

LIMIT_S = 90.0
"""Below the 120 s of a whole test, so that it is told what never came."""
LONG_S = 240.0
"""Of tests that have 300 s: whole runs."""


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


def wait_until(
    condition: Callable[[], Any],
    limit_s: float = LIMIT_S,
    *,
    while_runs: Popen[Any] | None = None,
    told: Callable[[], object] = str,
) -> Any:
    """The same for tests without an event loop.

    The process `while_runs` must not end before; what `told` says is added to either error."""
    ends_s = time.monotonic() + limit_s
    while not (found := condition()):
        assert while_runs is None or while_runs.poll() is None, f"it ended before: {_source(condition)}\n{told()}"
        assert time.monotonic() < ends_s, f"{_never(condition, limit_s)}\n{told()}"
        time.sleep(0.02)
    return found


async def all_wait() -> None:
    """Returns when every other task of the loop waits for something: what could happen without new input, has."""
    own, quiet = asyncio.current_task(), 0
    # What one task has just done may be a callback that is run before the next wakes.
    while quiet < 2:
        await asyncio.sleep(0)
        waiters = (task._fut_waiter for task in asyncio.all_tasks() if task is not own)  # type: ignore[attr-defined]
        quiet = quiet + 1 if all(waiter is not None and not waiter.done() for waiter in waiters) else 0


def _never(condition: Callable[[], Any], limit_s: float) -> str:
    return f"within {limit_s:g} s this never held: {_source(condition)}"


def _source(condition: Callable[[], Any]) -> str:
    try:
        return inspect.getsource(condition).strip()
    except (OSError, TypeError):
        return repr(condition)
