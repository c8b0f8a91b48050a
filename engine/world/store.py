"""world.sqlite: the mapping entries of a run, so that a resumed run lives in the same world (engine.rundir.rows).

An entry stays as it is until a person vetoes a merge (engine.world.vetoes): then it is withdrawn, and kept beside.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Literal, NamedTuple

from engine.rundir.rows import RowsKind, RowStore, open_rows, read_rows

MAPPING_FORMAT = 2

_ENTRIES = """
CREATE TABLE entries (
    task TEXT NOT NULL,
    world TEXT NOT NULL,      -- chain hash of the writes that succeeded before
    tool TEXT NOT NULL,
    arguments TEXT NOT NULL,  -- canonical JSON
    content TEXT NOT NULL,    -- the observation
    ok INTEGER NOT NULL,
    source TEXT NOT NULL,     -- seeded | simulated | equivalent | imported
    same_as TEXT,             -- for an equivalent entry: tool and arguments of the entry it points at
    PRIMARY KEY (task, world, tool, arguments)
) WITHOUT ROWID
"""
_VETOES = """
CREATE TABLE vetoes (
    number INTEGER PRIMARY KEY,   -- 1, 2, ... in the order in which they were made
    task TEXT NOT NULL,           -- its id
    tool TEXT NOT NULL,
    one TEXT NOT NULL,            -- canonical arguments of two calls that do not mean the same, in whatever state
    other TEXT NOT NULL,
    training INTEGER NOT NULL,    -- groups that were recorded before it in trajectories/
    evaluation INTEGER NOT NULL   -- and in eval/
)
"""
_WITHDRAWN = """
CREATE TABLE withdrawn (          -- entries that a veto withdrew
    veto INTEGER NOT NULL,
    task TEXT NOT NULL,
    world TEXT NOT NULL,
    tool TEXT NOT NULL,
    arguments TEXT NOT NULL,
    content TEXT NOT NULL,
    ok INTEGER NOT NULL,
    source TEXT NOT NULL,
    same_as TEXT,
    PRIMARY KEY (veto, task, world, tool, arguments)
) WITHOUT ROWID
"""

Origin = Literal["seeded", "simulated", "equivalent", "imported"]
"""Where an answer came from; an imported one was there when the run began (engine.packs.exported)."""


class MappingRow(NamedTuple):
    """One entry as the database holds it."""

    task: str
    world: str
    tool: str
    arguments: str
    content: str
    ok: int
    source: Origin
    same_as: str | None


class Veto(NamedTuple):
    """A person's word that two calls of a task do not mean the same."""

    number: int
    task: str
    """Id of the task, where every episode has a world of its own too."""
    tool: str
    one: str
    """Canonical arguments of the call that had been given the other one's answer."""
    other: str
    training: int
    """Groups that were recorded before: they are as if there was no veto."""
    evaluation: int


class EntryStore(RowStore[MappingRow]):
    """Entries of world.sqlite; the first one of a key wins. Open one with :func:`open_store`."""

    kind = RowsKind(
        noun="a world database",
        application=0x53594E57,  # "SYNW"
        format=MAPPING_FORMAT,
        schema=(_ENTRIES, _VETOES, _WITHDRAWN),
        insert="INSERT OR IGNORE INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    )

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        super().__init__(path, connection)
        self.tasks = {task for (task,) in connection.execute("SELECT DISTINCT task FROM entries")}
        """Tasks that have entries: opening any other costs no query."""
        self.vetoes: list[Veto] = []
        self.withdrawn: list[tuple[int, MappingRow]] = []
        """Entries that were withdrawn, each with the number of its veto."""
        self._read_vetoes()

    def put(self, row: MappingRow) -> None:
        """Keep an entry; the first one of a key wins. Durable after the next :meth:`flush`."""
        super().put(row)
        self.tasks.add(row.task)

    async def load(self, task: str) -> list[MappingRow]:
        """The entries of one task, those not yet committed included.

        Raises RunError where the database cannot be read."""
        if task not in self.tasks:
            return []
        await self.flush()
        return await self._run(lambda: self._select(task))

    async def withdraw(self, veto: Veto, rows: Sequence[MappingRow]) -> None:
        """Keep a veto and withdraw the entries that it concerns, all or nothing.

        Raises RunError where the database cannot be written."""
        await self.flush()
        await self._run(lambda: self._withdraw(veto, rows))

    def _select(self, task: str) -> list[MappingRow]:
        query = "SELECT * FROM entries WHERE task = ? ORDER BY world, tool, arguments"
        return [MappingRow(*values) for values in self._connection.execute(query, (task,))]

    def _withdraw(self, veto: Veto, rows: Sequence[MappingRow]) -> None:
        keys = [row[:4] for row in rows]
        with self._connection as connection:
            connection.execute("INSERT INTO vetoes VALUES (?, ?, ?, ?, ?, ?, ?)", veto)
            kept = [(veto.number, *row) for row in rows]
            connection.executemany("INSERT INTO withdrawn VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", kept)
            gone = "DELETE FROM entries WHERE task = ? AND world = ? AND tool = ? AND arguments = ?"
            connection.executemany(gone, keys)
        self._read_vetoes()

    def _read_vetoes(self) -> None:
        vetoes = self._connection.execute("SELECT * FROM vetoes ORDER BY number")
        self.vetoes = [Veto(*values) for values in vetoes]
        withdrawn = self._connection.execute("SELECT * FROM withdrawn ORDER BY veto, task, world, tool, arguments")
        self.withdrawn = [(number, MappingRow(*values)) for number, *values in withdrawn]


def open_store(path: Path) -> AbstractAsyncContextManager[EntryStore]:
    """Open world.sqlite, made where it does not exist; flushed and closed at the end, also under cancellation.

    Raises ConfigError for an unknown format, a file that is not ours, and a filesystem without working locks."""
    return open_rows(EntryStore, path)


def read_store(path: Path) -> AbstractAsyncContextManager[EntryStore]:
    """Open world.sqlite to look at it, without a lock that a run would meet.

    Raises ConfigError where there is none, for an unknown format, and for a file that is not ours."""
    return read_rows(EntryStore, path)
