"""Sources under test: closed at the end, and looked at until something is to be seen."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeVar

import anyio.to_thread
import pytest
from blockbuster import BlockBuster

from engine.rundir.layout import RunDir
from tests.parts.waiting import until
from tui.live import LiveSource
from tui.snapshot import Snapshot, SnapshotQuery, SnapshotSource

S = TypeVar("S", bound=SnapshotSource)
aside = anyio.to_thread.run_sync
"""What blocks, in a worker thread."""


def may_listen(blockbuster: BlockBuster) -> None:
    """Making a unix listener looks for an old socket, on the loop: anyio's way."""
    blockbuster.functions["os.stat"].can_block_in("anyio/_core/_sockets.py", "setup_unix_local_socket")


def reads_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look reads one frame of the records and no more, as on a machine that is busy: a test that expects all of
    them of one look fails everywhere."""
    monkeypatch.setattr("tui.replay._READ_S", 0.0)


@asynccontextmanager
async def closed_at_the_end(source: S) -> AsyncIterator[S]:
    """A source, closed at the end."""
    try:
        yield source
    finally:
        await source.close()


def looking(run: RunDir) -> AbstractAsyncContextManager[LiveSource]:
    """A source of a run in flight, closed at the end."""
    return closed_at_the_end(LiveSource(run))


async def look_until(
    source: SnapshotSource, condition: Callable[[Snapshot], object], question: SnapshotQuery | None = None
) -> Snapshot:
    """The first snapshot that meets a condition."""

    async def seen() -> Snapshot | None:
        found = await source.look(question or SnapshotQuery())
        return found if condition(found) else None

    found: Snapshot = await until(seen)
    return found


def all_read(seen: Snapshot) -> bool:
    """Whether the records are read to their end: a look reads for a while, and goes on in the next."""
    return "reading the records" not in seen.note


async def looked(source: SnapshotSource, **question: Any) -> Snapshot:
    """The first snapshot for which all records were read."""
    return await look_until(source, all_read, SnapshotQuery(**question))
