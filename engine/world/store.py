"""world.sqlite: the mapping entries of a run, so that a resumed run lives in the same world.

All SQLite runs in worker threads, one call at a time; the event loop only appends to a list. A flush commits
everything put so far in one transaction, and concurrent callers share one commit: whoever writes a trajectory frame
flushes first, so an entry is committed before any frame that used it. WAL with synchronous=NORMAL survives the kill of
every process, which is what an acknowledged frame promises too.
"""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import anyio
from anyio import CapacityLimiter, to_thread

from engine.errors import ConfigError, RunError

FORMAT = 1
_APPLICATION = 0x53594E57  # "SYNW": marks the file as ours

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

_LOCK_PROBE = """
import fcntl, sys
with open(sys.argv[1], "r+b") as file:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        sys.exit(0)
sys.exit(3)
"""

_T = TypeVar("_T")

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


class EntryStore:
    """Entries of world.sqlite; open one with :func:`open_store`."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self.tasks = {task for (task,) in connection.execute("SELECT DISTINCT task FROM entries")}
        """Tasks that have entries: opening any other costs no query."""
        self._connection = connection
        self._one = CapacityLimiter(1)
        self._commits = anyio.Lock()
        self._pending: list[Row] = []
        self._put = 0
        self._committed = 0

    def __repr__(self) -> str:
        return f"<EntryStore {self.path} [{self._committed} committed, {len(self._pending)} pending]>"

    @property
    def pending(self) -> int:
        """Entries that wait for the next commit."""
        return len(self._pending)

    def put(self, row: Row) -> None:
        """Keep an entry; the first one of a key wins. Durable after the next :meth:`flush`."""
        self._pending.append(row)
        self._put += 1
        self.tasks.add(row.task)

    async def load(self, task: str) -> list[Row]:
        """The entries of one task, those not yet committed included.

        Raises RunError where the database cannot be read."""
        if task not in self.tasks:
            return []
        await self.flush()
        return await self._run(lambda: self._select(task))

    async def flush(self) -> None:
        """Commit everything that was put before this call.

        Raises RunError naming the file and the reason; the entries are kept, and the next flush tries again."""
        wanted = self._put
        if self._committed >= wanted:
            return
        async with self._commits:
            if self._committed >= wanted:
                return
            rows = self._pending[:]
            await self._run(lambda: self._insert(rows))
            del self._pending[: len(rows)]
            self._committed += len(rows)

    async def _run(self, work: Callable[[], _T]) -> _T:
        try:
            return await to_thread.run_sync(work, limiter=self._one)
        except sqlite3.Error as error:
            raise RunError(f"{self.path}: {error}; free space or make it writable, then resume the run") from error

    def _insert(self, rows: list[Row]) -> None:
        with self._connection:
            self._connection.executemany("INSERT OR IGNORE INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def _select(self, task: str) -> list[Row]:
        found = self._connection.execute("SELECT * FROM entries WHERE task = ?", (task,))
        return [Row(*values) for values in found]

    async def _close(self) -> None:
        try:
            await self.flush()
        finally:
            await self._run(self._connection.close)


@asynccontextmanager
async def open_store(path: Path) -> AsyncIterator[EntryStore]:
    """Open world.sqlite, made where it does not exist; flushed and closed at the end, also under cancellation.

    Raises ConfigError for an unknown format, a file that is not ours, and a filesystem without working locks."""
    store = await to_thread.run_sync(_open, path)
    try:
        yield store
    finally:
        with anyio.CancelScope(shield=True):
            await store._close()  # noqa: SLF001 - closing is this module's


def _open(path: Path) -> EntryStore:
    elsewhere = "put the run directory on a local disk"
    if not locks_work(path.parent):
        raise ConfigError(f"{path.parent}: file locks do not work on this filesystem; {elsewhere}")
    try:
        return _connected(path)
    except sqlite3.Error as error:
        raise ConfigError(f"{path}: {error}; {elsewhere}, or move the file away if it is not a database") from error


def _connected(path: Path) -> EntryStore:
    # Calls come from several worker threads, but one at a time.
    connection = sqlite3.connect(path, timeout=5, check_same_thread=False)
    with ExitStack() as failing:
        failing.callback(connection.close)
        _configure(path, connection)
        store = EntryStore(path, connection)
        failing.pop_all()
    return store


def _configure(path: Path, connection: sqlite3.Connection) -> None:
    mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
    if mode != "wal":
        raise ConfigError(f"{path}: this filesystem has no write-ahead log for SQLite; use a local disk")
    connection.execute("PRAGMA synchronous=NORMAL")
    _check_format(path, connection)


def _check_format(path: Path, connection: sqlite3.Connection) -> None:
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    found = connection.execute("PRAGMA user_version").fetchone()[0]
    empty = not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if empty and not application and not found:
        with connection:
            connection.execute("BEGIN EXCLUSIVE")
            connection.execute(_SCHEMA)
            connection.execute(f"PRAGMA application_id={_APPLICATION}")
            connection.execute(f"PRAGMA user_version={FORMAT}")
    elif application != _APPLICATION:
        raise ConfigError(f"{path}: not a world database of synth-engine; move it away")
    elif found != FORMAT:
        raise ConfigError(
            f"{path}: format {found}, this version reads {FORMAT}; continue the run with the version that wrote it"
        )


def locks_work(directory: Path) -> bool:
    """Whether another process sees a lock that this one holds on a file in ``directory``.

    SQLite's own checks cannot tell: connections of one process do not need the filesystem to exclude each other."""
    import fcntl  # noqa: PLC0415 - POSIX only, and only where a run opens its database

    probe = directory / ".lock-probe"
    try:
        with probe.open("w+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            child = subprocess.run([sys.executable, "-I", "-S", "-c", _LOCK_PROBE, str(probe)], check=False)
    except OSError:
        return False
    finally:
        probe.unlink(missing_ok=True)
    return child.returncode == 0
