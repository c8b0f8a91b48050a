"""How a value is found in prose: any of its forms, as whole words and in any case."""

from __future__ import annotations

import re

from engine.synthesis.values.kinds import value_type
from engine.types import Json

_NOT_IN_A_NUMBER = r"(?:[^\w.,]|[.,](?:\D|$)|$)"
"""What may stand behind a digit: `12` is neither in `12.50` nor in `120`, but before a full stop."""


def spoken_pattern(value: Json, kind: str = "fixed") -> str:
    """A pattern of RE2 that finds a value of a type in a text; without a group, and to be used with `(?i)`.

    Raises ValueError for a text that is no type."""
    return f"(?:{'|'.join(map(_form, value_type(kind).spoken(value)))})"


def _form(form: str) -> str:
    before = r"\b" if re.match(r"\w", form, re.ASCII) else ""
    if form[-1:].isdigit():
        return f"{before}{re.escape(form)}{_NOT_IN_A_NUMBER}"
    return f"{before}{re.escape(form)}" + (r"\b" if re.search(r"\w$", form, re.ASCII) else "")
