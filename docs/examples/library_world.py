"""A world of one's own: a library's books in SQLite. `world.kind = "library_world:LibraryWorld"`."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from engine.task import Task
from engine.types import Json, Observation, ToolCall
from engine.world.admission import admit
from engine.world.effects import RefusedError


class LibraryWorld:
    """One object serves the whole run; every episode opens a session, many at once."""

    async def open(self, task: Task, seed: int) -> LibrarySession:  # noqa: ARG002 - nothing is random here
        """A fresh database with the books of the task."""
        return LibrarySession(task, task.world.state["books"])


class LibrarySession:
    """One episode's library."""

    def __init__(self, task: Task, books: Sequence[Mapping[str, Any]]) -> None:
        self._task = task
        # In memory a query takes microseconds; a file or a network would be asked in anyio.to_thread.run_sync.
        self._db = sqlite3.connect(":memory:")
        self._db.execute("CREATE TABLE books (title TEXT PRIMARY KEY, shelf TEXT, lent_to TEXT)")
        self._db.executemany("INSERT INTO books VALUES (:title, :shelf, :lent_to)", books)

    async def call(self, call: ToolCall) -> Observation:
        """A wrong call is an observation with ok false, as a real API would answer; never an exception."""
        try:
            # Unknown tools, missing and ill-typed arguments are refused by the schemas of the task.
            answer = self._answer(admit(self._task, call))
        except RefusedError as refusal:
            return Observation(content=_json({"error": str(refusal)}), ok=False)
        return Observation(content=_json(answer), ok=True)

    def _answer(self, call: ToolCall) -> Json:
        title = call.arguments["title"]
        found = self._db.execute("SELECT shelf, lent_to FROM books WHERE title = ?", (title,)).fetchone()
        if found is None:
            raise RefusedError(f"no book is called {title!r}")
        shelf, lent_to = found
        if call.name == "find_book":
            return {"shelf": shelf, "available": lent_to is None}
        if lent_to is not None:
            raise RefusedError(f"{title!r} is lent already")
        self._db.execute("UPDATE books SET lent_to = ? WHERE title = ?", (call.arguments["reader"], title))
        return {"lent_to": call.arguments["reader"]}

    async def close(self) -> Json:
        """The final state, which a scorer and `show` see."""
        rows = self._db.execute("SELECT title, lent_to FROM books ORDER BY title").fetchall()
        self._db.close()
        return {"lent": {title: lent_to for title, lent_to in rows if lent_to is not None}}


def _json(value: Json) -> str:
    return orjson.dumps(value).decode()
