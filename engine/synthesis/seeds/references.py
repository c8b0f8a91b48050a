"""The local references of an OpenAPI document, and its schemas with what they refer to written out.

A tool stands alone in a task, so its schemas cannot refer to a document. A schema that contains itself is cut off where
it would begin again; the parts of an `allOf` that only add members become one object.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from engine.schema.pointer import MissingError, parse_pointer, read_pointer
from engine.schema.validate import map_inner_schemas
from engine.synthesis.seeds.toolbox import Toolbox
from engine.types import Json

MOST_SCHEMAS = 5_000
"""Schemas of one operation, references written out."""
_DEEPEST = 60
_NOTES = frozenset({"title", "description", "default", "examples", "format", "deprecated", "$comment"})
_NO_MEANING = frozenset({"xml", "externalDocs", "discriminator", "readOnly", "writeOnly", "example", "nullable"})
"""Keywords of OpenAPI that say nothing about a JSON value, or have been rewritten."""


class UnusableError(ValueError):
    """A part of a document of which no tool can be made; the message says why, and what to do about it."""


class References:
    """Follows the references of one document; what is cut off or not kept is noted in the toolbox."""

    def __init__(self, document: Mapping[str, Any], box: Toolbox) -> None:
        self._document, self._box = document, box
        self._left = 0

    def followed(self, node: Json) -> Json:
        """A node, or what it refers to, through any number of references.

        Raises UnusableError."""
        seen: set[str] = set()
        while isinstance(node, Mapping) and isinstance(target := node.get("$ref"), str):
            if target in seen:
                raise UnusableError(f"$ref {target!r} leads back to itself: correct it")
            seen.add(target)
            node = self._at(target)
        return node

    def written_out(self, schema: Json, place: str, *, hidden: str) -> Json:
        """A schema without references; `hidden` is `readOnly` or `writeOnly`: properties so marked are not part of it.

        Raises UnusableError."""
        self._left = MOST_SCHEMAS
        return self._out(schema, (), place, hidden)

    def _at(self, target: str) -> Json:
        if not target.startswith("#"):
            raise UnusableError(f"$ref {target!r} leads to another file: bundle them, `redocly bundle FILE` does")
        try:
            return read_pointer(self._document, parse_pointer(unquote(target[1:])))
        except (MissingError, ValueError) as error:
            raise UnusableError(f"$ref {target!r} points at nothing: correct it") from error

    def _out(self, schema: Json, above: tuple[str, ...], place: str, hidden: str) -> Json:
        self._left -= 1
        if self._left < 0 or len(above) > _DEEPEST:
            raise UnusableError(
                f"has more than {MOST_SCHEMAS} schemas or {_DEEPEST} levels, references written out: simplify it"
            )
        if not isinstance(schema, Mapping):
            return schema
        target = schema.get("$ref")
        if isinstance(target, str):
            if target in above:
                self._box.left_out(place, f"{target!r} contains itself: cut off here, any value is admitted")
                return {name: body for name, body in schema.items() if name in _NOTES}
            beside = {name: body for name, body in schema.items() if name not in ("$ref", "nullable")}
            found = self._out(self._at(target), (*above, target), place, hidden)
            if not beside or not isinstance(found, Mapping):
                return found
            # 3.1 lets keywords stand beside a reference; 3.0 does not, and where it is done all the same they describe.
            return _one_object({"allOf": [self._out(beside, above, place, hidden), found]})
        shown = self._visible(schema, hidden)
        # The empty text counts a level, and is no reference.
        inner = map_inner_schemas(shown, lambda part, where: self._out(part, (*above, ""), f"{place}{where}", hidden))
        made = _one_object(self._plain(inner))
        return _or_null(made) if schema.get("nullable") is True else made

    def _visible(self, schema: Mapping[str, Any], hidden: str) -> Mapping[str, Any]:
        """The schema without properties that the other side alone sends."""
        properties = schema.get("properties")
        if not isinstance(properties, Mapping):
            return schema
        kept = {name: body for name, body in properties.items() if not self._marked(body, hidden)}
        gone = [name for name in properties if name not in kept]
        required = schema.get("required")
        if isinstance(required, list):
            return {**schema, "properties": kept, "required": [name for name in required if name not in gone]}
        return {**schema, "properties": kept}

    def _marked(self, body: Json, hidden: str) -> bool:
        found = self.followed(body)
        return any(isinstance(part, Mapping) and part.get(hidden) is True for part in (body, found))

    def _plain(self, schema: dict[str, Any]) -> dict[str, Any]:
        """The schema in draft 2020-12: OpenAPI's own keywords rewritten, what says nothing about values left out."""
        made = {name: body for name, body in schema.items() if name not in _NO_MEANING and not name.startswith("x-")}
        for name in ("xml", "discriminator"):
            if name in schema:
                self._box.left_out("schemas", f"{name} says nothing about a JSON value")
        if "example" in schema and "examples" not in made:
            made["examples"] = [schema["example"]]
        for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
            if isinstance(made.get(exclusive), bool):
                strict = made.pop(exclusive)
                made |= {exclusive: made.pop(bound)} if strict and bound in made else {}
        return made


def _one_object(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema whose `allOf` is merged into it, if no two parts speak of the same; else as it is."""
    several = schema.get("allOf")
    if not isinstance(several, list) or not several:
        return schema
    parts = [{name: body for name, body in schema.items() if name != "allOf"}, *several]
    if not all(map(is_mergeable, parts)):
        return schema
    made: dict[str, Any] = {}
    for name, body in (member for part in parts for member in part.items()):
        known = made.setdefault(name, body)
        if name == "properties":
            if any(known.get(key, inner) != inner for key, inner in body.items()):
                return schema
            made[name] = {**known, **body}
        elif name == "required":
            made[name] = [*known, *(key for key in body if key not in known)]
        elif name not in _NOTES and known != body:
            return schema
    # What is closed refuses the members of the other parts, which it would no longer do in one object.
    closed = any(part.get("additionalProperties", True) is not True for part in parts)
    return schema if closed and sum("properties" in part for part in parts) > 1 else made


def is_mergeable(part: Json) -> bool:
    """Whether a schema is an object whose members, if it has any, are told as they must be."""
    return (
        isinstance(part, Mapping)
        and isinstance(part.get("properties", {}), Mapping)
        and isinstance(part.get("required", []), list)
    )


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    """What OpenAPI 3.0 calls nullable."""
    if not isinstance(schema.get("type"), str):
        return {"anyOf": [schema, {"type": "null"}]}
    enum = schema.get("enum")
    more = {"enum": [*enum, None]} if isinstance(enum, list) and None not in enum else {}
    return {**schema, "type": [schema["type"], "null"], **more}
