"""JSON Schema (draft 2020-12) for tool arguments and rubric checks.

Schemas come from packs, values from completions: patterns run on RE2, `$ref` stays inside the schema, nothing is
fetched. The subset that nearly all tools use is decided by plain closures in about a microsecond; anything else goes to
jsonschema. Both give the same verdict (tests/test_tools.py compares them).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import jsonschema
import orjson
from jsonschema.protocols import Validator
from jsonschema.validators import extend
from referencing import Registry

from engine.types import Json
from engine.world import plain_schema
from engine.world.canonical import compact
from engine.world.patterns import search
from engine.world.plain_schema import Defect

Check = Callable[[Json], Defect | None]

_REFUSED = frozenset({"$id", "$anchor", "$dynamicRef", "$dynamicAnchor", "$recursiveRef", "patternProperties"})
_LITERAL = frozenset({"const", "enum", "default", "examples"})


class SchemaProblem(NamedTuple):
    """Why a schema cannot be used: where in it, and the reason."""

    path: str
    reason: str


def _re2_pattern(_: Validator, pattern: str, value: Json, _schema: Json) -> Iterator[jsonschema.ValidationError]:
    if isinstance(value, str) and not search(pattern)(value):
        yield jsonschema.ValidationError(f"{value!r} does not match {pattern!r}")


_Validator = extend(jsonschema.Draft202012Validator, {"pattern": _re2_pattern})

_Meta = jsonschema.Draft202012Validator(jsonschema.Draft202012Validator.META_SCHEMA)


def compiled(schema: Mapping[str, Any]) -> Check:
    """A function that gives the first defect of a value under ``schema``, or None; compiled once per distinct schema.

    Raises ValueError where the schema itself is not usable; :func:`schema_problems` says why in detail."""
    return _compiled(orjson.dumps(schema))


@lru_cache(maxsize=65_536)
def _compiled(encoded: bytes) -> Check:
    schema = orjson.loads(encoded)
    plain = plain_schema.build(schema)
    if plain is not None:
        return plain
    for problem in schema_problems(schema):
        raise ValueError(f"{problem.path}: {problem.reason}")
    validator = _Validator(schema, registry=Registry())

    def general(value: Json) -> Defect | None:
        try:
            defects = sorted(map(_defect, validator.iter_errors(value)), key=_rank)
        except RecursionError:
            return Defect((), "type", "nested too deeply")
        return defects[0] if defects else None

    return general


def _defect(error: jsonschema.ValidationError) -> Defect:
    path = tuple(error.absolute_path)
    schema, value = error.schema, error.instance
    if error.validator == "required" and isinstance(value, Mapping) and isinstance(error.validator_value, list):
        absent = next((name for name in error.validator_value if name not in value), "")
        return Defect((*path, absent), "required", "missing")
    if error.validator == "additionalProperties" and isinstance(value, Mapping) and isinstance(schema, Mapping):
        extra = next((name for name in value if name not in schema.get("properties", {})), "")
        return Defect((*path, extra), "additionalProperties", "unexpected")
    limit = compact(error.validator_value) if error.validator in plain_schema.BOUNDS else ""
    return Defect(path, str(error.validator), f"{error.validator} {limit}".strip())


def _rank(defect: Defect) -> tuple[int, str]:
    order = {"required": 0, "additionalProperties": 1}
    return order.get(defect.keyword, 2), repr(defect.path)


def schema_problems(schema: Json) -> tuple[SchemaProblem, ...]:
    """Every reason for which a schema of a pack is refused."""
    return _problems(orjson.dumps(schema))


@lru_cache(maxsize=65_536)
def _problems(encoded: bytes) -> tuple[SchemaProblem, ...]:
    schema = orjson.loads(encoded)
    if plain_schema.build(schema) is not None:
        return ()
    if not isinstance(schema, Mapping):
        return (SchemaProblem("schema", "must be a JSON object"),)
    error = next(_Meta.iter_errors(schema), None)
    if error is not None:
        return (SchemaProblem(".".join(map(str, error.absolute_path)) or "schema", error.message[:200]),)
    return tuple(_unsafe(schema, schema, "schema"))


def _unsafe(node: Json, root: Mapping[str, Any], path: str) -> Iterator[SchemaProblem]:
    """Keywords that would fetch, loop or backtrack."""
    if isinstance(node, list):
        for index, inner in enumerate(node):
            yield from _unsafe(inner, root, f"{path}[{index}]")
    if not isinstance(node, Mapping):
        return
    for name, inner in node.items():
        here = f"{path}.{name}"
        if name in _REFUSED and not isinstance(inner, Mapping | list):
            yield SchemaProblem(here, f"{name} is not supported in packs")
        elif name == "patternProperties":
            yield SchemaProblem(here, "patternProperties is not supported in packs; declare the properties")
        elif name == "$ref" and isinstance(inner, str):
            yield from _reference(inner, root, here)
        elif name == "pattern" and isinstance(inner, str):
            yield from _pattern(inner, here)
        elif name not in _LITERAL:
            yield from _unsafe(inner, root, here)


def _reference(target: str, root: Mapping[str, Any], path: str) -> Iterator[SchemaProblem]:
    if target != "#" and not target.startswith("#/"):
        yield SchemaProblem(path, f"$ref must be local (#/…), not {target!r}")
        return
    node: Any = root
    for token in target.split("/")[1:]:
        name = token.replace("~1", "/").replace("~0", "~")
        if not isinstance(node, Mapping) or name not in node:
            yield SchemaProblem(path, f"$ref {target!r} points at nothing in this schema")
            return
        node = node[name]


def _pattern(text: str, path: str) -> Iterator[SchemaProblem]:
    try:
        search(text)
    except ValueError as error:
        yield SchemaProblem(path, str(error))
