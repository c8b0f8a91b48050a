"""When a text says a value: literally, whole, apart from case. Nothing is paraphrased, so nothing is invented."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from engine.types import Json

_LONGEST = 80
"""Characters up to which a text is a value; beyond, it is wording, which two good agents choose differently."""


def occurs(value: Json, text: str) -> bool:
    """Whether ``text`` contains a string or number as a whole; of a list, all members. Truth values occur
    nowhere."""
    if isinstance(value, list):
        return bool(value) and all(occurs(member, text) for member in value)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return False
    if isinstance(value, str):
        # One letter is a word of its own in any prose.
        found = len(value) > 1 and re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text, re.IGNORECASE)
        return len(value) <= _LONGEST and bool(found)
    # A unit may follow (28ms), but not the rest of a longer number, a date or a time.
    return any(
        re.search(rf"(?<![\w.])(?<!\d[,:])(?<!\w-){re.escape(spelled)}(?!\d|[.,:-]\d)", text)
        for spelled in _spelled(value)
    )


def _spelled(number: float) -> set[str]:
    """6000.0 is written 6000, 6,000, 6000.00 or 6,000.00."""
    whole = float(number).is_integer()
    plain = {str(int(number)), f"{int(number):,}"} if whole else {repr(number), f"{number:,}"}
    return plain | {f"{number:.2f}", f"{number:,.2f}"} if isinstance(number, float) else plain


def is_identifier(value: Json) -> bool:
    """Whether a value has one spelling: a text without spaces that has a digit, ``_`` or ``@``."""
    return isinstance(value, str) and re.fullmatch(r"(?=.*[\d_@])\S+", value) is not None


def names_one_thing(value: Json) -> bool:
    """Whether a value is most likely the id of one thing: a text without spaces that has a letter and a digit."""
    return isinstance(value, str) and re.fullmatch(r"(?=.*\d)(?=.*[^\W\d_])\S+", value) is not None


def argument_leaves(arguments: Mapping[str, Any]) -> Iterator[tuple[str, Json]]:
    """(name, value) of every scalar, and of every list of scalars, inside an arguments object."""
    for name, value in arguments.items():
        yield from _leaves(name, value)


def _leaves(name: str, value: Json) -> Iterator[tuple[str, Json]]:
    if isinstance(value, Mapping):
        yield from argument_leaves(value)
    elif isinstance(value, list) and any(isinstance(member, Mapping | list) for member in value):
        for member in value:
            yield from _leaves(name, member)
    else:
        yield name, value


def words(name: str) -> list[str]:
    """The words of a name in snake_case or camelCase, in lower case."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[^\W\d_A-Z]+|\d+", name)]
