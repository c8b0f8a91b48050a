"""Canonical JSON: when two calls are the same call.

Two argument objects are equal when they differ only in key order, in 25 against 25.0, in Unicode composition (NFC), in
white space around strings, or in writing out a schema default. Checks, mapping and simulator see the canonical form:
equal calls get equal answers, equal states and equal verdicts. What a pack compares with arguments must be canonical
itself (:func:`odd`), or nothing would ever equal it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from math import isfinite
from typing import Any

import orjson

from engine.schema.recordable import recorded_text
from engine.types import Json

_INT64 = 2**63


def canonical(value: Json) -> Json:
    """The canonical copy of a JSON value.

    Raises ValueError for what JSON on the wire cannot hold (NaN, infinities, integers beyond 64 bits, lone
    surrogates), and for two names that are one."""
    if isinstance(value, str):
        return _text(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        if not -_INT64 <= value < _INT64:
            raise ValueError("an integer does not fit into 64 bits, its sign included")
        return value
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, Mapping):
        made = {_composed(name): canonical(inner) for name, inner in value.items()}
        if len(made) != len(value):
            raise ValueError("two properties have the same name in NFC")
        return made
    if isinstance(value, list | tuple):
        return [canonical(inner) for inner in value]
    raise ValueError(f"not a JSON value: {type(value).__name__}")


def odd(value: Json) -> str:
    """Why no canonical value equals this one; empty if one does."""
    try:
        made = canonical(value)
    except ValueError as error:
        return f"{value!a} equals no argument: {error}"
    return "" if made == value else f"{value!a} equals no argument, which are all trimmed and in NFC: write {made!a}"


def _text(value: str) -> str:
    return _composed(value.strip())


def _composed(value: str) -> str:
    if value.isascii():
        return value
    return unicodedata.normalize("NFC", recorded_text(value))


def _number(value: float) -> float | int:
    if not isfinite(value):
        raise ValueError(f"not a JSON number: {value}")
    return int(value) if -_INT64 <= value < _INT64 and value.is_integer() else value


def canonical_object(schema: Mapping[str, Any], value: Mapping[str, Any]) -> dict[str, Any]:
    """The one form that equal objects share: canonical, the schema's defaults of absent properties filled in.

    Raises ValueError as `canonical` does."""
    # Names first, so that a default is not added beside the same name in another composition.
    return with_defaults(schema, canonical(value))


def with_defaults(schema: Mapping[str, Any], value: Mapping[str, Any]) -> dict[str, Any]:
    """``value`` with the canonical defaults that an object schema declares for absent properties, nested ones too."""
    filled = dict(value)
    for name, inner in schema.get("properties", {}).items():
        if not isinstance(inner, Mapping):
            continue
        if name not in filled and "default" in inner:
            filled[name] = canonical(inner["default"])
        if "properties" in inner and isinstance(filled.get(name), Mapping):
            filled[name] = with_defaults(inner, filled[name])
    return filled


def canonical_bytes(value: Json) -> bytes:
    """A canonical value as bytes: compact JSON with sorted keys; equal values give equal bytes."""
    # Copied, because a mapping keeps it: orjson (from 3.12 on) leaves 4 KB of buffer behind each value it returns.
    return b"".join((orjson.dumps(value, option=orjson.OPT_SORT_KEYS), b""))


def compact(value: Json) -> str:
    """A JSON value as an observation shows it and a cache keeps it: compact, keys in their own order."""
    return orjson.dumps(value).decode()


def same(left: Json, right: Json) -> bool:
    """JSON equality: 25 equals 25.0, true does not equal 1."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(same(inner, right[name]) for name, inner in left.items())
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)
