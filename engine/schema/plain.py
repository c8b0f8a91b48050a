"""The plain subset of JSON Schema as closures: types, constants, bounds, objects and arrays of those.

:func:`plain_check` returns None for a schema outside the subset (and for a malformed one); it then goes to jsonschema.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from engine.schema.canonical import compact, same
from engine.schema.patterns import search
from engine.types import Json


class Defect(NamedTuple):
    """What is wrong with a value: where in it, the keyword that says so, and a short reason for the agent."""

    path: tuple[str | int, ...]
    keyword: str
    reason: str


SchemaCheck = Callable[[Json], Defect | None]

_NOTES = frozenset({"title", "description", "default", "examples", "format", "$comment", "$schema", "deprecated"})
_OBJECT = frozenset({"properties", "required", "additionalProperties"})


def _number(value: Json) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_TYPES: Mapping[str, Callable[[Json], bool]] = {
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: _number(value) and (isinstance(value, int) or value.is_integer()),
    "number": _number,
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "array": lambda value: isinstance(value, list | tuple),
    "object": lambda value: isinstance(value, Mapping),
}

_LIMITS: Mapping[str, tuple[Callable[[Json], bool], Callable[[Any, Any], bool]]] = {
    "minimum": (_number, lambda value, limit: value >= limit),
    "maximum": (_number, lambda value, limit: value <= limit),
    "exclusiveMinimum": (_number, lambda value, limit: value > limit),
    "exclusiveMaximum": (_number, lambda value, limit: value < limit),
    "minLength": (_TYPES["string"], lambda value, limit: len(value) >= limit),
    "maxLength": (_TYPES["string"], lambda value, limit: len(value) <= limit),
    "minItems": (_TYPES["array"], lambda value, limit: len(value) >= limit),
    "maxItems": (_TYPES["array"], lambda value, limit: len(value) <= limit),
}


def reason(keyword: str, limit: Json) -> str:
    """What a value must be by this keyword, for the agent."""
    if keyword == "type":
        return f"expected {limit if isinstance(limit, str) else ' or '.join(limit)}"
    if keyword in ("enum", "const"):
        return f"expected one of {compact(limit if keyword == 'enum' else [limit])}"
    return f"{keyword} {limit}" if keyword in _LIMITS or keyword == "pattern" else keyword


def plain_check(schema: Json) -> SchemaCheck | None:
    """A check for a schema of the subset, else None."""
    if not isinstance(schema, Mapping):
        return None
    checks: list[SchemaCheck] = []
    shaped = False
    for name, body in schema.items():
        if name in _NOTES:
            continue
        if name in _OBJECT:
            if shaped:
                continue
            shaped, made = True, _object(schema)
        else:
            maker = _MAKERS.get(name)
            made = maker(body) if maker else None
        if made is None:
            return None
        checks.append(made)
    return _every(checks)


def _every(checks: list[SchemaCheck]) -> SchemaCheck:
    if len(checks) == 1:
        return checks[0]

    def check(value: Json) -> Defect | None:
        for part in checks:
            defect = part(value)
            if defect is not None:
                return defect
        return None

    return check


def _type(names: Json) -> SchemaCheck | None:
    if isinstance(names, str):
        return _ONE_TYPE.get(names)
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name in _TYPES for name in names):
        return None
    tests = [_TYPES[name] for name in names]
    defect = Defect((), "type", reason("type", names))
    return lambda value: None if any(test(value) for test in tests) else defect


def _of_type(name: str) -> SchemaCheck:
    test, defect = _TYPES[name], Defect((), "type", reason("type", name))
    return lambda value: None if test(value) else defect


_ONE_TYPE = {name: _of_type(name) for name in _TYPES}


def _one_of(keyword: str, limit: Json) -> SchemaCheck | None:
    values = limit if keyword == "enum" else [limit]
    if not isinstance(values, list) or not values:
        return None
    defect = Defect((), keyword, reason(keyword, limit))
    if all(isinstance(value, str) for value in values):
        texts = frozenset(values)
        return lambda value: None if isinstance(value, str) and value in texts else defect
    return lambda value: None if any(same(value, known) for known in values) else defect


def _bound(name: str, limit: Json) -> SchemaCheck | None:
    applies, holds = _LIMITS[name]
    counts = name.endswith(("Length", "Items"))
    if not _number(limit) or (counts and (not isinstance(limit, int) or limit < 0)):
        return None
    defect = Defect((), name, reason(name, limit))
    return lambda value: None if not applies(value) or holds(value, limit) else defect


def _pattern(text: Json) -> SchemaCheck | None:
    if not isinstance(text, str):
        return None
    try:
        found = search(text)
    except ValueError:
        return None
    defect = Defect((), "pattern", reason("pattern", text))
    return lambda value: None if not isinstance(value, str) or found(value) else defect


def _object(schema: Mapping[str, Any]) -> SchemaCheck | None:
    properties, required = schema.get("properties", {}), schema.get("required", [])
    closed = schema.get("additionalProperties", True)
    if not isinstance(properties, Mapping) or not isinstance(required, list) or not isinstance(closed, bool):
        return None
    if not all(isinstance(name, str) for name in required) or len(set(required)) != len(required):
        return None
    built = {name: plain_check(inner) for name, inner in properties.items()}
    fields = {name: check for name, check in built.items() if check is not None}
    if len(fields) != len(built):
        return None

    def check(value: Json) -> Defect | None:
        if not isinstance(value, Mapping):
            return None
        for name in required:
            if name not in value:
                return Defect((name,), "required", "missing")
        for name, inner in value.items():
            field = fields.get(name)
            if field is None:
                if closed is False and name not in fields:
                    return Defect((name,), "additionalProperties", "unexpected")
                continue
            defect = field(inner)
            if defect is not None:
                return defect._replace(path=(name, *defect.path))
        return None

    return check


def _items(schema: Json) -> SchemaCheck | None:
    item = plain_check(schema)
    if item is None:
        return None

    def check(value: Json) -> Defect | None:
        if not isinstance(value, list | tuple):
            return None
        for index, inner in enumerate(value):
            defect = item(inner)
            if defect is not None:
                return defect._replace(path=(index, *defect.path))
        return None

    return check


_MAKERS: Mapping[str, Callable[[Json], SchemaCheck | None]] = {
    "type": _type,
    "const": partial(_one_of, "const"),
    "enum": partial(_one_of, "enum"),
    "pattern": _pattern,
    "items": _items,
    **{name: partial(_bound, name) for name in _LIMITS},
}
