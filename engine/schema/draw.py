"""Values for output fields that no effect declares: drawn from (task, tool, arguments, field), so the same for ever.

The write history is left out on purpose: only a declared write may change what a later read says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import Any

from engine.schema.validate import SchemaProblem
from engine.types import Json

_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789"
_TEXT_LENGTH = 6
LONGEST = 1000
"""The longest text that may have to be drawn."""
_LARGEST = 2**62
_LOW, _HIGH = 1, 999


def drawn_value(seed: bytes, field: str, schema: Mapping[str, Any]) -> Json:
    """A value of ``schema`` for one output field; ``seed`` identifies task, tool and arguments."""
    digest = sha256(seed + b"\0" + field.encode()).digest()
    number = int.from_bytes(digest[:8], "big")
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][number % len(schema["enum"])]
    kind = _kind(schema)
    if kind == "object":
        inner = schema.get("properties", {})
        return {name: drawn_value(seed, f"{field}.{name}", part) for name, part in inner.items()}
    if kind in ("integer", "number"):
        return _number(number, kind, schema)
    if kind == "boolean":
        return number % 2 == 1
    if kind == "array":
        return []
    return _text(digest, schema) if kind == "string" else None


def undrawable(schema: Json, path: str = "schema") -> Iterator[SchemaProblem]:
    """Every reason for which no value of a sound schema can be drawn."""
    if not isinstance(schema, Mapping):
        yield SchemaProblem(path, "must be an object: no value is drawn for true or false")
        return
    if schema.get("minLength", 0) > LONGEST:
        yield SchemaProblem(f"{path}.minLength", f"a text that is drawn has at most {LONGEST} characters")
    for bound in ("minimum", "maximum"):
        if abs(schema.get(bound, 0)) > _LARGEST:
            yield SchemaProblem(f"{path}.{bound}", "a number that is drawn is at most 2**62 in size")
    for name, inner in schema.get("properties", {}).items():
        yield from undrawable(inner, f"{path}.properties.{name}")


def _kind(schema: Mapping[str, Any]) -> str:
    declared = schema.get("type", "object" if "properties" in schema else "string")
    if isinstance(declared, list):
        return str(next((kind for kind in declared if kind != "null"), "null"))
    return str(declared)


def _number(number: int, kind: str, schema: Mapping[str, Any]) -> float | int:
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is None:
        low = _LOW if high is None or high > _LOW else high - (_HIGH - _LOW)
    if high is None:
        high = _HIGH if low < _HIGH else low + (_HIGH - _LOW)
    if kind == "integer":
        first, last = -int(-low // 1), int(high // 1)
        return first + number % (last - first + 1) if last > first else first
    return min(max(round(low + (high - low) * (number / 2**64), 2), low), high)


def _text(digest: bytes, schema: Mapping[str, Any]) -> str:
    length = int(min(max(_TEXT_LENGTH, schema.get("minLength", 0)), schema.get("maxLength", LONGEST)))
    letters = digest[8:]
    while len(letters) < length:
        digest = sha256(digest).digest()
        letters += digest
    return "".join(_LETTERS[byte % len(_LETTERS)] for byte in letters[:length])
