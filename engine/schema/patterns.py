"""Patterns that come from packs, compiled once for RE2: linear time, so no pack can stall the event loop."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import re2

Search = Callable[[str], bool]


@lru_cache(maxsize=65_536)
def search(pattern: str) -> Search:
    """A predicate: whether the pattern occurs in a text.

    Raises ValueError naming what RE2 does not accept (back-references and look-around among it)."""
    options = re2.Options()
    options.log_errors = False
    try:
        compiled = re2.compile(pattern, options)
    except re2.error as error:
        reason = error.args[0] if error.args else error
        text = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
        raise ValueError(f"{pattern!r} is not an RE2 pattern: {text}") from error
    return lambda text: compiled.search(text) is not None
