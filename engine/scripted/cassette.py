"""Recorded replies to prompt documents: JSON Lines of `{"document": {...} | "sha256": hex, "reply": {...} | text}`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from engine.errors import ConfigError
from engine.scripted.calls import first_problem


def digest(document: Mapping[str, Any]) -> str:
    """SHA-256 of a document as compact JSON with sorted keys: what a row may hold in place of the document."""
    return sha256(orjson.dumps(document, option=orjson.OPT_SORT_KEYS)).hexdigest()


class CassetteRow(BaseModel):
    """One recorded reply; an object is said as compact JSON, a text as it is."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    document: dict[str, Any] | None = None
    sha256: str | None = None
    reply: dict[str, Any] | str

    @model_validator(mode="after")
    def _one_key(self) -> Self:
        if (self.document is None) == (self.sha256 is None):
            raise ValueError("a row has a document or its sha256, and not both")
        return self


class Cassette:
    """Replies by document; where several rows have the same one they are said in turn, the last for ever."""

    def __init__(self, rows: Iterable[CassetteRow] = (), *, strict: bool = False) -> None:
        self.strict = strict
        """Whether a document without a row is refused instead of played by the rules."""
        self._replies: dict[str, list[str]] = {}
        for row in rows:
            key = row.sha256 if row.document is None else digest(row.document)
            assert key is not None
            text = row.reply if isinstance(row.reply, str) else orjson.dumps(row.reply).decode()
            self._replies.setdefault(key, []).append(text)

    @classmethod
    def load(cls, path: Path, *, strict: bool = False) -> Cassette:
        """Read a file.

        Raises ConfigError naming the file, and the line that is wrong."""
        rows = []
        try:
            lines = path.read_bytes().splitlines()
        except OSError as error:
            raise ConfigError(f"--cassette {path}: {error.strerror}") from None
        for number, line in enumerate(lines, 1):
            try:
                rows.append(CassetteRow.model_validate_json(line))
            except ValidationError as error:
                raise ConfigError(f"--cassette {path}, line {number}: {first_problem(error)}") from None
        return cls(rows, strict=strict)

    def reply(self, document: Mapping[str, Any]) -> str | None:
        """The next recorded reply to a document, or None if there never was one."""
        replies = self._replies.get(digest(document))
        if replies is None:
            return None
        return replies.pop(0) if len(replies) > 1 else replies[0]
