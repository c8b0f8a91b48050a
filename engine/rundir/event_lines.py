"""A .jsonl file of events, in the order in which they happened, that the event loop never waits for.

Whoever has an event appends it to a list; one task writes the list, in a worker thread. A disk that does not take a row
ends the block that the file is open in, so that a run does not go on without its record.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio

from engine.errors import owned_tasks
from engine.rundir.layout import JsonLines


class EventLines:
    """Events on their way to a file; open one with `open_event_lines`."""

    def __init__(self, file: JsonLines) -> None:
        self._file = file
        # A row leaves once it is written, whoever is cancelled meanwhile; both ends of a deque are safe in two threads.
        self._pending: deque[Mapping[str, Any]] = deque()
        self._news, self._writing = anyio.Event(), anyio.Lock()

    def append(self, row: Mapping[str, Any]) -> None:
        """Take an event, which is not changed any more; it is written soon."""
        self._pending.append(row)
        self._news.set()

    async def flush(self) -> None:
        """Write what happened so far; await it before writing a frame that shows it.

        Raises RunError if the disk does not take it."""
        async with self._writing:
            if self._pending:
                await anyio.to_thread.run_sync(self._write)

    async def keep_written(self) -> None:
        """Write events as they come, until cancelled.

        Raises RunError if the disk does not take one."""
        while True:
            await self._news.wait()
            self._news = anyio.Event()
            await self.flush()

    def _write(self) -> None:
        while self._pending:
            self._file.append(self._pending[0])
            self._pending.popleft()


@asynccontextmanager
async def open_event_lines(path: Path) -> AsyncIterator[EventLines]:
    """The events of `path`, until the end of the block; what is pending is written then, also under cancellation.

    Raises RunError, in a group if the block was cancelled for it, if the disk does not take them."""
    with await anyio.to_thread.run_sync(JsonLines, path) as file:
        lines = EventLines(file)
        try:
            async with owned_tasks() as tasks:
                tasks.start_soon(lines.keep_written)
                yield lines
        finally:
            with anyio.CancelScope(shield=True):
                await lines.flush()
