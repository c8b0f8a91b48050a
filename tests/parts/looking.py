"""Sources under test: closed at the end, and looked at until something is to be seen."""

from contextlib import asynccontextmanager

import anyio
import anyio.to_thread

from tui.live import LiveSource
from tui.snapshot import Question

aside = anyio.to_thread.run_sync
"""What blocks, in a worker thread."""


def may_listen(blockbuster):
    """Making a unix listener looks for an old socket, on the loop: anyio's way."""
    blockbuster.functions["os.stat"].can_block_in("anyio/_core/_sockets.py", "setup_unix_local_socket")


@asynccontextmanager
async def looking(run):
    """A source, closed at the end."""
    source = LiveSource(run)
    try:
        yield source
    finally:
        await source.close()


async def until(source, condition, question=None, within_s=8.0):
    """The first snapshot that meets a condition."""
    with anyio.fail_after(within_s):
        while True:
            seen = await source.look(question or Question())
            if condition(seen):
                return seen
            await anyio.sleep(0.05)
