"""A SQLite file of rows that a run appends to: world.sqlite and journal.sqlite are two of them.

All SQLite runs in worker threads, one call at a time; the event loop only appends to a list. A flush commits
everything put so far in one transaction, and concurrent callers share one commit: whoever writes a trajectory frame
flushes first, so a row is committed before any frame that used it. WAL with synchronous=NORMAL survives the kill of
every process, which is what an acknowledged frame promises too.
"""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import anyio
from anyio import CapacityLimiter, to_thread

from engine.errors import ConfigError, RunError

_Row = TypeVar("_Row", bound=tuple[Any, ...])
_Store = TypeVar("_Store", bound="RowStore[Any]")
_T = TypeVar("_T")

_LOCK_PROBE = """
import fcntl, sys
with open(sys.argv[1], "r+b") as file:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        sys.exit(0)
sys.exit(3)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsKind:
    """What a file of rows holds."""

    noun: str
    """As a refusal calls it: `a world database`."""
    application: int
    """SQLite's application id: marks the file as ours, and of this kind."""
    format: int
    schema: Sequence[str]
    """Statements that make the tables of a new file."""
    insert: str
    """Statement that keeps one row, or ignores it where its key has one."""


class RowStore(Generic[_Row]):
    """Rows of one file: put, committed together, and read back. A subclass says which, and how they are looked up."""

    kind: ClassVar[RowsKind]

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection
        self._one = CapacityLimiter(1)
        self._commits = anyio.Lock()
        self._pending: list[_Row] = []
        self._put = 0
        self._committed = 0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.path} [{self._committed} committed, {len(self._pending)} pending]>"

    @property
    def pending(self) -> int:
        """Rows that wait for the next commit."""
        return len(self._pending)

    def put(self, row: _Row) -> None:
        """Keep a row; durable after the next :meth:`flush`."""
        self._pending.append(row)
        self._put += 1

    async def flush(self) -> None:
        """Commit everything that was put before this call.

        Raises RunError naming the file and the reason; the rows are kept, and the next flush tries again."""
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

    def _stored(self, row: _Row) -> Sequence[Any]:
        """A row as the file holds it; made in a worker thread."""
        return row

    async def _run(self, work: Callable[[], _T]) -> _T:
        """What `work` returns, in a worker thread and alone.

        Raises RunError for what SQLite refuses."""
        try:
            return await to_thread.run_sync(work, limiter=self._one)
        except sqlite3.OperationalError as error:
            raise RunError(f"{self.path}: {error}; free space or make it writable, then resume the run") from error
        except sqlite3.Error as error:
            raise RunError(f"{self.path}: {error}; the file is damaged: restore it from a copy") from error

    def _insert(self, rows: list[_Row]) -> None:
        with self._connection:
            self._connection.executemany(self.kind.insert, map(self._stored, rows))

    async def _close(self) -> None:
        try:
            await self.flush()
        finally:
            await self._run(self._connection.close)


@asynccontextmanager
async def open_rows(store: type[_Store], path: Path) -> AsyncIterator[_Store]:
    """Open a file of rows, made where it does not exist; flushed and closed at the end, also under cancellation.

    Raises ConfigError for an unknown format, a file that is not ours, and a filesystem without working locks."""
    async with _closing(await to_thread.run_sync(_open, store, path)) as opened:
        yield opened


def write_rows(store: type[RowStore[_Row]], path: Path, rows: Sequence[_Row]) -> None:
    """Keep rows in a file, made where it does not exist: for who prepares a run and has no event loop yet.

    Raises ConfigError as `open_rows` does, and where they cannot be written."""
    opened = _open(store, path)
    try:
        opened._insert(list(rows))  # noqa: SLF001 - rows are this module's
    except sqlite3.Error as error:
        raise ConfigError(f"{path}: {error}; free space or make it writable") from error
    finally:
        opened._connection.close()  # noqa: SLF001 - so is the connection


@asynccontextmanager
async def read_rows(store: type[_Store], path: Path) -> AsyncIterator[_Store]:
    """Open a file of rows to look at it, without a lock that its writer would meet.

    Raises ConfigError where there is none, for an unknown format, and for a file that is not ours."""
    async with _closing(await to_thread.run_sync(_open_to_read, store, path)) as opened:
        yield opened


@asynccontextmanager
async def _closing(store: _Store) -> AsyncIterator[_Store]:
    try:
        yield store
    finally:
        with anyio.CancelScope(shield=True):
            await store._close()  # noqa: SLF001 - closing is this module's


def _open(store: type[_Store], path: Path) -> _Store:
    elsewhere = "put the run directory on a local disk"
    if not locks_work(path.parent):
        raise ConfigError(f"{path.parent}: file locks do not work on this filesystem; {elsewhere}")
    try:
        # Calls come from several worker threads, but one at a time.
        connection = sqlite3.connect(path, timeout=5, check_same_thread=False)
        return _made(store, path, connection, _prepare)
    except sqlite3.Error as error:
        raise ConfigError(f"{path}: {error}; {elsewhere}, or move the file away if it is not a database") from error


def _open_to_read(store: type[_Store], path: Path) -> _Store:
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such file; this needs {store.kind.noun}")
    # A log of writes beside the file is part of it. Without one nobody has it open, and it is read as it lies there,
    # on a medium without writing too.
    log = path.with_name(f"{path.name}-wal")
    way = "mode=ro" if log.exists() and log.stat().st_size else "immutable=1"
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?{way}", timeout=5, check_same_thread=False, uri=True)
        return _made(store, path, connection, _check_format)
    except sqlite3.Error as error:
        raise ConfigError(f"{path}: {error}; restore it from a copy") from error


def _made(
    store: type[_Store],
    path: Path,
    connection: sqlite3.Connection,
    check: Callable[[RowsKind, Path, sqlite3.Connection], None],
) -> _Store:
    with ExitStack() as failing:
        failing.callback(connection.close)
        check(store.kind, path, connection)
        made = store(path, connection)
        failing.pop_all()
    return made


def _prepare(kind: RowsKind, path: Path, connection: sqlite3.Connection) -> None:
    mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
    if mode != "wal":
        raise ConfigError(f"{path}: this filesystem has no write-ahead log for SQLite; use a local disk")
    connection.execute("PRAGMA synchronous=NORMAL")
    empty = not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if empty and _marks(connection) == (0, 0):
        with connection:
            connection.execute("BEGIN EXCLUSIVE")
            for statement in kind.schema:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id={kind.application}")
            connection.execute(f"PRAGMA user_version={kind.format}")
    _check_format(kind, path, connection)


def _check_format(kind: RowsKind, path: Path, connection: sqlite3.Connection) -> None:
    application, found = _marks(connection)
    if application != kind.application:
        raise ConfigError(f"{path}: not {kind.noun} of synth-engine; move it away")
    if found != kind.format:
        raise ConfigError(
            f"{path}: format {found}, this version reads {kind.format}; continue the run with the version that wrote it"
        )


def _marks(connection: sqlite3.Connection) -> tuple[int, int]:
    """The application id and format of a file."""
    [[application]] = connection.execute("PRAGMA application_id")
    [[found]] = connection.execute("PRAGMA user_version")
    return application, found


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
