"""world.sqlite: the mapping entries of a run, so that a resumed run lives in the same world (engine.rowstore)."""

from __future__ import annotations

import sqlite3
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Literal, NamedTuple

from engine.rowstore import Kind, RowStore, open_rows

FORMAT = 1

_SCHEMA = """
CREATE TABLE entries (
    task TEXT NOT NULL,
    world TEXT NOT NULL,      -- chain hash of the writes that succeeded before
    tool TEXT NOT NULL,
    arguments TEXT NOT NULL,  -- canonical JSON
    content TEXT NOT NULL,    -- the observation
    ok INTEGER NOT NULL,
    source TEXT NOT NULL,     -- seeded | simulated | equivalent
    same_as TEXT,             -- for an equivalent entry: tool and arguments of the entry it points at
    PRIMARY KEY (task, world, tool, arguments)
) WITHOUT ROWID
"""

Origin = Literal["seeded", "simulated", "equivalent"]
"""Where an answer came from."""


class Row(NamedTuple):
    """One entry as the database holds it."""

    task: str
    world: str
    tool: str
    arguments: str
    content: str
    ok: int
    source: Origin
    same_as: str | None


class EntryStore(RowStore[Row]):
    """Entries of world.sqlite; the first one of a key wins. Open one with :func:`open_store`."""

    kind = Kind(
        noun="a world database",
        application=0x53594E57,  # "SYNW"
        format=FORMAT,
        schema=(_SCHEMA,),
        insert="INSERT OR IGNORE INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    )

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        super().__init__(path, connection)
        self.tasks = {task for (task,) in connection.execute("SELECT DISTINCT task FROM entries")}
        """Tasks that have entries: opening any other costs no query."""

    def put(self, row: Row) -> None:
        """Keep an entry; the first one of a key wins. Durable after the next :meth:`flush`."""
        super().put(row)
        self.tasks.add(row.task)

    async def load(self, task: str) -> list[Row]:
        """The entries of one task, those not yet committed included.

        Raises RunError where the database cannot be read."""
        if task not in self.tasks:
            return []
        await self.flush()
        return await self._run(lambda: self._select(task))

    def _select(self, task: str) -> list[Row]:
        found = self._connection.execute("SELECT * FROM entries WHERE task = ?", (task,))
        return [Row(*values) for values in found]


def open_store(path: Path) -> AbstractAsyncContextManager[EntryStore]:
    """Open world.sqlite, made where it does not exist; flushed and closed at the end, also under cancellation.

    Raises ConfigError for an unknown format, a file that is not ours, and a filesystem without working locks."""
    return open_rows(EntryStore, path)
