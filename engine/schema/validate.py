"""JSON Schema (draft 2020-12) for tool arguments and rubric checks.

Schemas come from packs, values from completions: patterns run on RE2, `$ref` leads to another part of the schema that
is a schema too, nothing is fetched. The subset that nearly all tools use is decided by plain closures in about a
microsecond; anything else goes to jsonschema. Both give the same verdict, which a test compares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import unquote

import jsonschema
import orjson
from jsonschema.protocols import Validator
from jsonschema.validators import extend
from referencing import Registry

from engine.schema import plain
from engine.schema.canonical import compact, odd
from engine.schema.patterns import search
from engine.schema.plain import Defect, SchemaCheck
from engine.types import Json

_REFUSED = frozenset({"$id", "$anchor", "$dynamicRef", "$dynamicAnchor", "$recursiveRef"})
_NAMED = frozenset({"properties", "$defs", "definitions", "dependentSchemas"})
"""Keywords that hold schemas by name: a name in there is no keyword."""
_INNER = frozenset(
    {"additionalProperties", "allOf", "anyOf", "contains", "contentSchema", "else", "if", "items", "not", "oneOf"}
    | {"prefixItems", "propertyNames", "then", "unevaluatedItems", "unevaluatedProperties"}
)
"""Keywords that hold a schema, or a list of them."""


_OF_THE_WHOLE = frozenset(
    {"allOf", "anyOf", "dependentRequired", "dependentSchemas", "else", "if", "maxProperties", "minProperties", "not"}
    | {"oneOf", "required", "then", "unevaluatedProperties"}
)
"""Keywords that judge an object by several of its members at once."""


class SchemaProblem(NamedTuple):
    """Why a schema cannot be used: where in it, and the reason."""

    path: str
    reason: str


def _re2_pattern(_: Validator, pattern: str, value: Json, _schema: Json) -> Iterator[jsonschema.ValidationError]:
    if isinstance(value, str) and not search(pattern)(value):
        yield jsonschema.ValidationError(f"{value!r} does not match {pattern!r}")


_Validator = extend(jsonschema.Draft202012Validator, {"pattern": _re2_pattern})

_Meta = jsonschema.Draft202012Validator(jsonschema.Draft202012Validator.META_SCHEMA)


def compiled_schema(schema: Mapping[str, Any]) -> SchemaCheck:
    """A function that gives the first defect of a value under ``schema``, or None; compiled once per distinct schema.

    Raises ValueError where the schema itself is not usable; :func:`schema_problems` says why in detail."""
    return _compiled(compact(schema))


@lru_cache(maxsize=65_536)
def _compiled(encoded: str) -> SchemaCheck:
    schema = orjson.loads(encoded)
    check = plain.plain_check(schema)
    if check is not None:
        return check
    for problem in schema_problems(schema):
        raise ValueError(f"{problem.path}: {problem.reason}")
    # jsonschema would leave our dialect for the one named here, and with it RE2.
    schema.pop("$schema", None)
    validator = _Validator(schema, registry=Registry())

    def general(value: Json) -> Defect | None:
        try:
            return min(map(_defect, validator.iter_errors(value)), key=_rank, default=None)
        except RecursionError:
            return Defect((), "type", "nested too deeply")

    return general


def member_defect(schema: Mapping[str, Any], name: str, value: Json) -> Defect | None:
    """The first defect of one member of an object under the object's schema, whatever the other members are."""
    parts = {part: body for part, body in schema.items() if part not in _OF_THE_WHOLE}
    try:
        return compiled_schema(parts)({name: value})
    except ValueError:
        # A reference into what was left out: nothing is certain of the member then.
        return None


def _defect(error: jsonschema.ValidationError) -> Defect:
    path = tuple(error.absolute_path)
    schema, value = error.schema, error.instance
    if error.validator == "required" and isinstance(value, Mapping) and isinstance(error.validator_value, list):
        absent = next((name for name in error.validator_value if name not in value), "")
        return Defect((*path, absent), "required", "missing")
    if error.validator == "additionalProperties" and isinstance(value, Mapping) and isinstance(schema, Mapping):
        extra = next((name for name in value if name not in schema.get("properties", {})), "")
        return Defect((*path, extra), "additionalProperties", "unexpected")
    meant = min(_meant(error), key=_rank, default=None)
    return meant or Defect(path, str(error.validator), plain.reason(str(error.validator), error.validator_value))


def _meant(error: jsonschema.ValidationError) -> frozenset[Defect]:
    """What is wrong by every alternative that the value can have meant: not by one that wants another type, or another
    constant in a field, unless they all do."""
    if error.validator not in ("anyOf", "oneOf"):
        return frozenset()
    alternatives: dict[str | int, list[jsonschema.ValidationError]] = {}
    for inner in error.context:
        alternatives.setdefault(inner.relative_schema_path[0], []).append(inner)
    found = list(alternatives.values())
    left = [inner for inner in found if not any(map(_another, inner))] or found
    return frozenset.intersection(*(frozenset(map(_defect, inner)) for inner in left)) if left else frozenset()


def _another(inner: jsonschema.ValidationError) -> bool:
    depth = len(inner.relative_path)
    return (inner.validator == "type" and depth == 0) or (inner.validator in ("const", "enum") and depth <= 1)


def _rank(defect: Defect) -> tuple[int, str, str]:
    order = {"required": 0, "additionalProperties": 1}
    # The reason decides last: the same value gets the same answer in every process.
    return order.get(defect.keyword, 2), repr(defect.path), defect.reason


def schema_problems(schema: Json) -> tuple[SchemaProblem, ...]:
    """Every reason for which a schema of a pack is refused."""
    return _problems(compact(schema))


def argument_problems(schema: Json) -> tuple[SchemaProblem, ...]:
    """The same for a schema that arguments are held against: also what no arguments could ever equal."""
    return _argument_problems(compact(schema))


@lru_cache(maxsize=65_536)
def _problems(encoded: str) -> tuple[SchemaProblem, ...]:
    schema = orjson.loads(encoded)
    if plain.plain_check(schema) is not None:
        return ()
    if not isinstance(schema, Mapping):
        return (SchemaProblem("schema", "must be a JSON object"),)
    error = next(_Meta.iter_errors(schema), None)
    if error is not None:
        return (SchemaProblem(".".join(map(str, error.absolute_path)) or "schema", error.message[:200]),)
    return tuple(_unsafe(schema))


@lru_cache(maxsize=65_536)
def _argument_problems(encoded: str) -> tuple[SchemaProblem, ...]:
    return _problems(encoded) or tuple(_unequalled(orjson.loads(encoded)))


def every_schema(node: Json, path: str = "schema") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """A schema and those inside it, each with its place; names of properties and literals only look like schemas."""
    if isinstance(node, list):
        for index, inner in enumerate(node):
            yield from every_schema(inner, f"{path}[{index}]")
    if not isinstance(node, Mapping):
        return
    yield path, node
    for name, body in node.items():
        if name in _INNER:
            yield from every_schema(body, f"{path}.{name}")
        elif name in _NAMED and isinstance(body, Mapping):
            for key, inner in body.items():
                yield from every_schema(inner, f"{path}.{name}.{key}")


def map_inner_schemas(schema: Mapping[str, Any], change: Callable[[Json, str], Json]) -> dict[str, Any]:
    """A schema with `change(inner, place)` for each schema directly inside it; a place is `.properties.NAME`."""
    made: dict[str, Any] = {}
    for name, body in schema.items():
        if name in _NAMED and isinstance(body, Mapping):
            made[name] = {key: change(inner, f".{name}.{key}") for key, inner in body.items()}
        elif name in _INNER and isinstance(body, list):
            made[name] = [change(inner, f".{name}[{index}]") for index, inner in enumerate(body)]
        else:
            made[name] = change(body, f".{name}") if name in _INNER else body
    return made


def _unsafe(root: Mapping[str, Any]) -> Iterator[SchemaProblem]:
    """Keywords that would fetch, loop or backtrack."""
    schemas = list(every_schema(root))
    targets = {id(schema) for _, schema in schemas}
    for path, schema in schemas:
        for name, body in schema.items():
            here = f"{path}.{name}"
            if name in _REFUSED:
                yield SchemaProblem(here, f"{name} is not supported in packs")
            elif name == "patternProperties":
                yield SchemaProblem(here, "patternProperties is not supported in packs; declare the properties")
            elif name == "$schema" and schema is not root:
                yield SchemaProblem(here, "$schema is supported at the root only")
            elif name == "$ref":
                yield from _reference(body, root, targets, here)
            elif name == "pattern":
                yield from _pattern(body, here)


def _unequalled(root: Mapping[str, Any]) -> Iterator[SchemaProblem]:
    """Values and names that no arguments have, because they are not canonical."""
    for path, schema in every_schema(root):
        values = [*schema.get("enum", ()), *([schema["const"]] if "const" in schema else ())]
        names = {*schema.get("properties", ()), *schema.get("required", ())}
        for reason in filter(None, map(odd, [*values, *({name: None} for name in sorted(names))])):
            yield SchemaProblem(path, reason)


def _reference(target: str, root: Mapping[str, Any], targets: set[int], path: str) -> Iterator[SchemaProblem]:
    if target != "#" and not target.startswith("#/"):
        yield SchemaProblem(path, f"$ref must be local (#/…), not {target!r}")
        return
    node: Json = root
    # jsonschema reads the fragment of a URI: unquoted first, then as a pointer.
    for token in unquote(target).split("/")[1:]:
        name = token.replace("~1", "/").replace("~0", "~")
        if not isinstance(node, Mapping) or name not in node:
            yield SchemaProblem(path, f"$ref {target!r} points at nothing in this schema")
            return
        node = node[name]
    if id(node) not in targets and not isinstance(node, bool):
        yield SchemaProblem(path, f"$ref {target!r} points at what is no schema; declare one in $defs")


def _pattern(text: str, path: str) -> Iterator[SchemaProblem]:
    try:
        search(text)
    except ValueError as error:
        yield SchemaProblem(path, str(error))
