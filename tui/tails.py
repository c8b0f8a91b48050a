"""The end of a .jsonl file that another process is writing, and what is kept of its rows.

A :class:`FileTail` reads what is new and hands it to a :class:`Rows`, row by row; one whose file was replaced or cut
starts again. What is kept is bounded, so that a dashboard left open for a week does not grow.
"""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import orjson

JsonRow = dict[str, Any]
"""One line of a .jsonl file, an object."""

NEWEST = 60
"""Engine rows that are never thinned out."""
SHOWN = 400
"""Rows of a chart."""
_KEPT = 4096
_CHUNK_BYTES = 1 << 20
"""Read at once; a longer line is no line of ours."""


class Rows(Protocol):
    """Takes the rows of a file, in order."""

    def add(self, row: JsonRow) -> None:
        """The next row; raises KeyError, TypeError or ValueError for one that is not what the file should hold."""
        ...

    def clear(self) -> None:
        """Forget all: the file is read anew."""
        ...


class FileTail:
    """Follows one file; it may be missing yet."""

    def __init__(self, path: Path, rows: Rows, *, newest_bytes: int | None = None) -> None:
        self.path = path
        self.malformed = 0
        """Lines that were skipped."""
        self._rows, self._newest_bytes = rows, newest_bytes
        self._file: BinaryIO | None = None
        self._at = 0
        self._within = False
        """The bytes at `_at` belong to a line that is skipped."""

    def close(self) -> None:
        """Release the file; idempotent."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def read(self) -> None:
        """Take what is new; a line without its end waits for it.

        Raises OSError for a file that cannot be read."""
        if not self._opened():
            return
        assert self._file is not None
        while chunk := self._file.read(_CHUNK_BYTES):
            whole = chunk.rfind(b"\n") + 1
            if not whole and len(chunk) < _CHUNK_BYTES:
                break
            if whole:
                self._take(chunk[:whole])
            self._within = not whole
            self._at += whole or len(chunk)
            self._file.seek(self._at)
        # What was left unread is read again, with its end.
        self._file.seek(self._at)

    def _take(self, lines: bytes) -> None:
        for number, line in enumerate(lines.splitlines()):
            if number == 0 and self._within:
                self.malformed += 1
                continue
            try:
                self._rows.add(orjson.loads(line))
            except (KeyError, TypeError, ValueError):
                self.malformed += 1

    def _opened(self) -> bool:
        """Whether the file is there; one that was replaced or cut is opened anew."""
        try:
            there = self.path.stat()
        except FileNotFoundError:
            if self._file is not None:
                self.close()
                self._rows.clear()
            return False
        if self._file is not None:
            # An open file's inode is not given to another, so that a replaced file always has a different one.
            held = os.fstat(self._file.fileno())
            if (held.st_dev, held.st_ino) == (there.st_dev, there.st_ino) and there.st_size >= self._at:
                return True
            self.close()
            self._rows.clear()
        self._file = self.path.open("rb", buffering=0)
        self._at, self._within, self.malformed = 0, False, 0
        self._skip_old(there.st_size)
        return True

    def _skip_old(self, size: int) -> None:
        """Begin with the line after the oldest byte that is wanted."""
        assert self._file is not None
        if self._newest_bytes is None or size <= self._newest_bytes:
            return
        self._file.seek(size - self._newest_bytes)
        self._at = size - self._newest_bytes + self._file.read(_CHUNK_BYTES).find(b"\n") + 1
        self._file.seek(self._at)


class Newest:
    """The last rows."""

    def __init__(self, most: int, *needs: str) -> None:
        self.rows: deque[JsonRow] = deque(maxlen=most)
        self._needs = needs

    def add(self, row: JsonRow) -> None:
        """Keep it."""
        for name in self._needs:
            row[name]
        self.rows.append(row)

    def clear(self) -> None:
        """Forget all."""
        self.rows.clear()


class Thinned:
    """All rows of a long run in bounded memory: the newest whole, of the older every 1st, 2nd, 4th, ... row.

    Which rows stay depends on their number alone, so that a chart does not shimmer when one comes in."""

    def __init__(self, key: str) -> None:
        self._key = key
        self.clear()

    def clear(self) -> None:
        """Forget all."""
        self._newest: deque[JsonRow] = deque()
        self._older: list[JsonRow] = []
        self._left = 0
        self._stride = 1

    def add(self, row: JsonRow) -> None:
        """Keep it, at least while it is new."""
        row[self._key] + 0.0
        self._newest.append(row)
        if len(self._newest) <= NEWEST:
            return
        row = self._newest.popleft()
        if self._left % self._stride == 0:
            self._older.append(row)
        self._left += 1
        if len(self._older) > _KEPT:
            del self._older[1::2]
            self._stride *= 2

    @property
    def last(self) -> JsonRow | None:
        """The newest row."""
        return self._newest[-1] if self._newest else None

    def until(self, value: float) -> tuple[JsonRow, ...]:
        """SHOWN rows at most whose key is `value` or less, the last NEWEST of them whole where they still are."""
        rows = [row for row in (*self._older, *self._newest) if row[self._key] <= value]
        older, newest = rows[:-NEWEST], rows[-NEWEST:]
        stride = 1
        while len(older) > stride * (SHOWN - NEWEST):
            stride *= 2
        return (*older[::stride], *newest)
