"""faults.jsonl of a run: every fault that was injected at the tool boundary, to be held against what came of it.

A line names the episode by task and seed, as a world knows it, and the number of the call. An episode that was played
again, by a run that was killed or in a second evaluation of its task, has its lines again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio

from engine.rundir.layout import JsonLines
from engine.task import Task
from engine.world.faults import Fault


class FaultLines:
    """Takes faults as they happen and writes them in batches, in a worker thread."""

    def __init__(self, file: JsonLines, clock: Callable[[], float]) -> None:
        self._file, self._clock = file, clock
        self._pending: list[dict[str, Any]] = []
        self._writing = anyio.Lock()

    def add(self, task: Task, seed: int, call: int, tool: str, fault: Fault) -> None:
        """One fault happened now (engine.world.faults.OnFault)."""
        row = {"task": task.id, "seed": seed, "call": call, "tool": tool, "fault": fault, "at_s": self._clock()}
        self._pending.append(row)

    async def flush(self) -> None:
        """Write what happened so far; await it before writing a frame that shows it.

        Raises RunError if the disk does not take it."""
        async with self._writing:
            rows, self._pending = self._pending, []
            if rows:
                await anyio.to_thread.run_sync(self._write, rows)

    def _write(self, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            self._file.append(row)


@asynccontextmanager
async def open_fault_lines(path: Path, clock: Callable[[], float]) -> AsyncIterator[FaultLines]:
    """The lines at `path`, until the end of the block; what is pending is written then, also under cancellation.

    Raises RunError if the disk does not take it."""
    file = await anyio.to_thread.run_sync(JsonLines, path)
    with file:
        lines = FaultLines(file, clock)
        try:
            yield lines
        finally:
            with anyio.CancelScope(shield=True):
                await lines.flush()
