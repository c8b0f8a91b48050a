"""journal.sqlite: every exchange with a simulator or judge, so that a run can be executed again without them.

An exchange is kept under the *subject* of its question, and of those of one subject the first whose reply was accepted
is the answer, for everybody and for ever; refused replies are kept too, for audits. Each row carries a digest of all
that it holds: an altered byte is found when the row is read.
"""

from __future__ import annotations

import sqlite3
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, NamedTuple

import zstandard

from engine.errors import RunError
from engine.rundir.rows import RowsKind, RowStore, open_rows, read_rows

JOURNAL_FORMAT = 1

_SCHEMA = """
CREATE TABLE exchanges (
    number INTEGER PRIMARY KEY,  -- in the order in which replies came
    subject TEXT NOT NULL,       -- hex digest of what was asked, whatever the wording
    attempt INTEGER NOT NULL,    -- 0, 1, ...: replies to one question
    role TEXT NOT NULL,          -- tool | user | judge
    task TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    model TEXT NOT NULL,
    request BLOB NOT NULL,       -- JSON, compressed
    reply TEXT NOT NULL,
    refusal TEXT NOT NULL,       -- why the reply was refused; empty for the answer
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    digest BLOB NOT NULL         -- of all fields but the number
)
"""
_ANSWERS = "CREATE UNIQUE INDEX answers ON exchanges (subject) WHERE refusal = ''"
_REFUSE = """
UPDATE exchanges SET request = ?, refusal = ?, digest = ? WHERE subject = ? AND reply = ? AND refusal = ''
"""

_DIGEST_BYTES = 16
_RECENT_ANSWERS = 65_536
"""Answers that stay in memory: those not yet committed, and those that somebody may just be asking for again."""
_PENDING_ROWS = 1024
"""Exchanges after which a question waits for a commit, so that memory stays bounded."""
_BATCH = 256


class Exchange(NamedTuple):
    """One question to a model and one reply of it."""

    subject: str
    """Hex digest of the question's logical content."""
    attempt: int
    """0, 1, ...: how often it had been asked before."""
    role: Literal["tool", "user", "judge"]
    task: str
    endpoint: str
    model: str
    request: bytes
    """Canonical JSON: messages and schema, as the endpoint was sent them."""
    reply: str
    """The text as it came."""
    refusal: str
    """Why the reply was refused; empty if it was accepted."""
    prompt_tokens: int
    completion_tokens: int


class Counts(NamedTuple):
    """Exchanges by role."""

    accepted: Counter[str]
    refused: Counter[str]


class Journal(RowStore[Exchange]):
    """Exchanges of journal.sqlite; open one with :func:`open_journal` or :func:`read_journal`."""

    kind = RowsKind(
        noun="a journal",
        application=0x53594E4A,  # "SYNJ"
        format=JOURNAL_FORMAT,
        schema=(_SCHEMA, _ANSWERS),
        insert="INSERT OR IGNORE INTO exchanges VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        super().__init__(path, connection)
        # What is no UTF-8 any more is for the digest to find, not for the decoder.
        connection.text_factory = lambda text: text.decode("utf-8", "surrogateescape")
        # Hashes alone: two subjects that share one cost a query, no more.
        self._answered = {
            hash(subject) for (subject,) in connection.execute("SELECT subject FROM exchanges WHERE refusal = ''")
        }
        self._recent: OrderedDict[str, Exchange] = OrderedDict()
        self._compressor, self._decompressor = zstandard.ZstdCompressor(level=3), zstandard.ZstdDecompressor()

    async def find(self, subject: str) -> Exchange | None:
        """The exchange in which a question was answered, committed or not; None if none was, which costs no query.

        Raises RunError where the file cannot be read, or the row is not what was written."""
        if self.pending >= _PENDING_ROWS:
            await self.flush()
        recent = self._recent.get(subject)
        if recent is not None or not self._may_answer(subject):
            return recent
        return await self._run(lambda: self._answer(subject))

    def _may_answer(self, subject: str) -> bool:
        """Whether the file is worth a query."""
        return hash(subject) in self._answered

    def keep(self, exchange: Exchange) -> Exchange:
        """Keep an exchange, durable after the next :meth:`flush`; returns the one that answers its question.

        That is the first with an accepted reply: of two callers that asked at the same time, both go on with the same
        one. A refused one comes back as it is."""
        if not exchange.refusal:
            first = self._recent.get(exchange.subject)
            if first is not None:
                return first
            self._answered.add(hash(exchange.subject))
            self._recent[exchange.subject] = exchange
            if len(self._recent) > _RECENT_ANSWERS:
                self._recent.popitem(last=False)
        self.put(exchange)
        return exchange

    async def withdraw(self, exchange: Exchange, refusal: str) -> None:
        """Refuse an answer that the file holds: its question is then open again. One that took its place stays.

        Raises RunError where the file cannot be written."""
        await self._run(partial(self._refuse, exchange._replace(refusal=refusal)))

    async def exchanges(self, role: str | None = None, task: str | None = None) -> AsyncIterator[Exchange]:
        """All exchanges in the order in which they were kept, or those of one role or task.

        Raises RunError where the file cannot be read, or at the first row that is not what was written."""
        await self.flush()
        last = 0
        while batch := await self._run(partial(self._after, last)):
            for _, exchange in batch:
                if role in (None, exchange.role) and task in (None, exchange.task):
                    yield exchange
            last = batch[-1][0]

    async def check(self) -> Counts:
        """Read everything there is: the structure of the file, and every row; returns what was counted.

        Raises RunError at the first thing that is not what was written."""
        problems = await self._run(lambda: list(self._connection.execute("PRAGMA integrity_check(1)")))
        if problems != [("ok",)]:
            raise RunError(f"{self.path}: {problems[0][0]}; the file is damaged: restore it from a copy")
        return await self.counts()

    async def counts(self) -> Counts:
        """How many exchanges there are.

        Raises RunError as `exchanges` does."""
        counts = Counts(Counter(), Counter())
        async for exchange in self.exchanges():
            (counts.refused if exchange.refusal else counts.accepted)[exchange.role] += 1
        return counts

    # --- rows, in a worker thread ---------------------------------------------------------------------------------

    def _stored(self, row: Exchange) -> Sequence[Any]:
        stored = row._replace(request=self._compressor.compress(row.request))
        return (*stored, _digest(stored))

    def _refuse(self, exchange: Exchange) -> None:
        # The request goes with its digest: compressed again, it may have other bytes.
        stored = exchange._replace(request=self._compressor.compress(exchange.request))
        changed = (stored.request, stored.refusal, _digest(stored), stored.subject, stored.reply)
        with self._connection:
            self._connection.execute(_REFUSE, changed)

    def _answer(self, subject: str) -> Exchange | None:
        query = "SELECT * FROM exchanges WHERE subject = ? AND refusal = ''"
        row = self._connection.execute(query, (subject,)).fetchone()
        return None if row is None else self._sound(row)

    def _after(self, number: int) -> list[tuple[int, Exchange]]:
        query = "SELECT * FROM exchanges WHERE number > ? ORDER BY number LIMIT ?"
        return [(row[0], self._sound(row)) for row in self._connection.execute(query, (number, _BATCH))]

    def _sound(self, row: Sequence[Any]) -> Exchange:
        """The exchange of a row.

        Raises RunError if it is not what was written."""
        stored, digest = Exchange(*row[1:-1]), row[-1]
        if _digest(stored) != digest:
            raise RunError(
                f"{self.path}: the exchange of subject {stored.subject!a} was altered after it was written; restore "
                "the file from a copy"
            )
        return stored._replace(request=self._decompressor.decompress(stored.request))


class _Reader(Journal):
    """A journal that another process may be writing: what was not there at first may be now."""

    def _may_answer(self, subject: str) -> bool:  # noqa: ARG002 - the writer's
        return True


def _digest(fields: Iterable[Any]) -> bytes:
    digest = blake2b(digest_size=_DIGEST_BYTES)
    for field in fields:
        # Of any type: an altered byte may have changed that too.
        content = field if isinstance(field, bytes) else str(field).encode("utf-8", "surrogateescape")
        digest.update(b"%s %d\0" % (type(field).__name__.encode(), len(content)))
        digest.update(content)
    return digest.digest()


def open_journal(path: Path) -> AbstractAsyncContextManager[Journal]:
    """Open journal.sqlite, made where it does not exist; flushed and closed at the end, also under cancellation.

    Raises ConfigError for an unknown format, a file that is not ours, and a filesystem without working locks."""
    return open_rows(Journal, path)


def read_journal(path: Path) -> AbstractAsyncContextManager[Journal]:
    """Open journal.sqlite to look it up, without a lock that a run would meet.

    Raises ConfigError where there is none, for an unknown format, and for a file that is not ours."""
    return read_rows(_Reader, path)
