"""What the record of an episode can hold: JSON that a frame of the stream gives back as it was written.

Worlds, users, scorers and language models hand in values of any kind. Each value is held to this rule once, where it
comes in, so that nothing that an episode keeps can fail to be written later, or be read as something else.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite
from typing import Any

import orjson

from engine.schema.legible import legible
from engine.types import Json

LEVELS = 200
"""Levels to which a value may nest: more than the deepest state of a task makes (engine.packs.problems), and few
enough for a frame and an answer to a viewer around it, for orjson writes 254."""
_LEAST, _MOST = -(2**63), 2**64 - 1
"""Integers that JSON is read and written with exactly."""
_NESTED = (dict, list)
_EXACT = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME
_SHOWN = 80
"""Characters of a place that are shown."""


class UnrecordableError(ValueError):
    """A value that no record can hold; the message says where in the value, and why."""


def recorded(value: Json) -> Json:
    """Returns a JSON value as a reader of the record gets it: a copy in which tuples are lists and subclasses plain.

    Raises UnrecordableError for what a frame refuses or would change: NaN and infinities, integers beyond 64 bits, half
    a surrogate pair, keys that are no text, nesting beyond LEVELS, and every type that JSON does not have."""
    try:
        content = orjson.dumps(value, option=_EXACT)
    except TypeError as error:
        raise UnrecordableError(next(_defects(value), str(error))) from error
    made = orjson.loads(content)
    # Decided in C nearly always; only what is left open, tuples too, is walked through.
    if made != value or (content.count(b"[") + content.count(b"{") > LEVELS and deeper_than(LEVELS, made)):
        for defect in _defects(value):
            raise UnrecordableError(defect)
    return made


def recorded_text(text: str) -> str:
    """Returns the text as plain `str`.

    Raises UnrecordableError for what is no text, and for half a surrogate pair, which is no character."""
    if not isinstance(text, str):
        raise UnrecordableError(f"the text is {_kind(text)}, not str")
    if defect := _text_defect(text):
        raise UnrecordableError(defect)
    return str.__str__(text)


def deeper_than(levels: int, value: Json) -> bool:
    """Whether the objects and arrays of parsed JSON nest deeper; told without recursion."""
    found = [value] if isinstance(value, _NESTED) else []
    while found and levels:
        members = (outer.values() if isinstance(outer, dict) else outer for outer in found)
        found = [inner for several in members for inner in several if isinstance(inner, _NESTED)]
        levels -= 1
    return bool(found)


def _defects(value: Any, place: tuple[object, ...] = ()) -> Iterator[str]:
    """What no record can hold in a value, each with its place: the members and elements that lead there."""
    if isinstance(value, dict | list | tuple) and len(place) >= LEVELS:
        yield _at(place, f"nests deeper than {LEVELS} levels")
    elif isinstance(value, dict):
        for name, inner in value.items():
            if type(name) is not str:
                yield _at(place, f"a key is {_kind(name)}, not str")
            elif defect := _text_defect(name):
                yield _at((*place, name), defect)
            else:
                yield from _defects(inner, (*place, name))
    elif isinstance(value, list) or type(value) is tuple:
        for number, inner in enumerate(value):
            yield from _defects(inner, (*place, number))
    elif defect := _scalar_defect(value):
        yield _at(place, defect)


def _scalar_defect(value: Any) -> str:
    if isinstance(value, str):
        return _text_defect(value)
    if isinstance(value, int):
        return "" if _LEAST <= value <= _MOST else "an integer does not fit into 64 bits"
    if type(value) is float:
        return "" if isfinite(value) else f"{value} is no JSON number"
    return "" if value is None else f"{_kind(value)} is no JSON value"


def _text_defect(text: str) -> str:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return f"half a surrogate pair (\\u{ord(text[error.start]):04x}) is no character"
    return ""


def _kind(value: object) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"


def _at(place: tuple[object, ...], defect: str) -> str:
    where = ".".join(map(str, place))
    return legible(f"{where[:_SHOWN]}: {defect}" if where else defect)
