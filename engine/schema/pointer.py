"""JSON Pointer (RFC 6901) into a world's state: read, and write without changing what others hold."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from engine.types import Json

_ESCAPE = re.compile(r"~(?![01])")
_APPEND = "-"
_INDEX = re.compile(r"0|[1-9][0-9]{0,8}")


class MissingError(LookupError):
    """The pointer leads nowhere."""


@lru_cache(maxsize=65_536)
def parse_pointer(pointer: str) -> tuple[str, ...]:
    """The unescaped tokens of a pointer; ``""`` is the whole document.

    Raises ValueError where RFC 6901 does."""
    if pointer and not pointer.startswith("/"):
        raise ValueError(f"pointer {pointer!r} must be empty or start with '/'")
    if _ESCAPE.search(pointer):
        raise ValueError(f"pointer {pointer!r}: '~' must be written ~0, and '/' inside a name ~1")
    return tuple(token.replace("~1", "/").replace("~0", "~") for token in pointer.split("/")[1:])


def read_pointer(document: Json, tokens: Sequence[str]) -> Json:
    """The value at a pointer.

    Raises MissingError."""
    value = document
    for token in tokens:
        value = _child(value, token)
    return value


def write_pointer(document: Json, tokens: Sequence[str], value: Json) -> Json:
    """A document with ``value`` at the pointer; every container on the way is copied, everything else shared.

    The last token may be new in an object; in an array it is an index or ``-`` (append). Raises MissingError where the
    parent of the last token is absent, or holds no members."""
    token, rest = tokens[0], tokens[1:]
    if isinstance(document, Mapping):
        inner = write_pointer(_child(document, token), rest, value) if rest else value
        return {**document, token: inner}
    if not isinstance(document, list):
        raise MissingError(token)
    if not rest and token == _APPEND:
        return [*document, value]
    old = _child(document, token)
    copy: list[Any] = list(document)
    copy[int(token)] = write_pointer(old, rest, value) if rest else value
    return copy


def _child(value: Json, token: str) -> Json:
    if isinstance(value, Mapping) and token in value:
        return value[token]
    if isinstance(value, list) and _INDEX.fullmatch(token) and int(token) < len(value):
        return value[int(token)]
    raise MissingError(token)
