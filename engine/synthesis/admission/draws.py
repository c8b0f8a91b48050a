"""Legal calls, drawn: what somebody calls who has the tools and knows nothing of what is wanted."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from types import UnionType
from typing import Any

from engine.schema.pointer import MissingError, parse_pointer, read_pointer
from engine.schema.validate import compiled_schema
from engine.task import Tool
from engine.types import Json, ToolCall

_TRIES = 8
"""Draws of a value, of which the first that its schema takes is used."""
_NUMBERS = (1, 20)
"""Bounds of numbers that have none."""
_DEEPEST = 6
"""Levels of a value: a schema may refer to itself."""
_LONGEST = 8
_ANY_TEXT = "something"


class CallDraws:
    """Draws calls by the schemas of the tools, with values that are known and without those that cannot be."""

    def __init__(self, tools: Sequence[Tool], rng: random.Random, hidden: frozenset[str] = frozenset()) -> None:
        """`hidden` are the values that are never drawn, as `folded` writes them."""
        self._tools, self._rng, self._hidden = tools, rng, hidden
        self._known: dict[str, Json] = {}

    def learn(self, value: Json) -> None:
        """Every text and number in a JSON value may be drawn from now on; names of members too."""
        self._known |= self._inside(value)

    def _inside(self, value: Json) -> dict[str, Json]:
        if isinstance(value, Mapping | list):
            members = (*value, *value.values()) if isinstance(value, Mapping) else value
            return {said: inner for member in members for said, inner in self._inside(member).items()}
        if isinstance(value, bool) or not isinstance(value, str | int | float) or self._hides(value):
            return {}
        return {folded(value): value}

    @property
    def known(self) -> Sequence[Json]:
        """What it has learnt, in that order."""
        return tuple(self._known.values())

    def call(self, tool: Tool | None = None) -> ToolCall:
        """A call of this tool, or of any."""
        tool = tool or self._rng.choice(self._tools)
        made = self._value(tool.parameters, tool.parameters)
        return ToolCall(name=tool.name, arguments=made if isinstance(made, dict) else {})

    def argument(self, tool: Tool, name: str) -> Json:
        """A value of one of a tool's parameters."""
        return self._value(tool.parameters.get("properties", {}).get(name, {}), tool.parameters)

    def _value(self, schema: Json, root: Mapping[str, Any], depth: int = 0) -> Json:
        if not isinstance(schema, Mapping) or depth > _DEEPEST:
            return self._text()
        for keyword in ("anyOf", "oneOf", "allOf"):
            if schema.get(keyword):
                return self._value(self._rng.choice(schema[keyword]), root, depth + 1)
        if "$ref" in schema:
            return self._value(_referred(schema["$ref"], root), root, depth + 1)
        kind = schema.get("type", "object" if "properties" in schema else "string")
        kind = self._rng.choice(kind) if isinstance(kind, list) and kind else kind
        if kind == "object":
            return self._object(schema, root, depth + 1)
        if kind == "array" and "enum" not in schema:
            length = max(min(schema.get("minItems", 0), _LONGEST), self._rng.randint(0, 2))
            return [self._value(schema.get("items", {}), root, depth + 1) for _ in range(length)]
        return self._scalar(schema, str(kind))

    def _scalar(self, schema: Mapping[str, Any], kind: str) -> Json:
        """A value that is not hidden, and that the schema takes if a few draws find one."""
        if "const" in schema or schema.get("enum"):
            offered = [schema["const"]] if "const" in schema else schema["enum"]
            return self._rng.choice([value for value in offered if not self._hides(value)] or [_ANY_TEXT])
        takes, found = _fitting(schema), _ANY_TEXT
        for _ in range(_TRIES):
            if kind in ("integer", "number"):
                drawn = self._number(schema, kind)
            else:
                drawn = {"boolean": self._rng.random() < 0.5, "null": None}.get(kind, self._text())
            if not self._hides(drawn):
                found = drawn
                if takes(drawn):
                    break
        return found

    def _hides(self, value: Json) -> bool:
        return folded(value) in self._hidden

    def _object(self, schema: Mapping[str, Any], root: Mapping[str, Any], depth: int) -> dict[str, Json]:
        required = schema.get("required", ())
        declared = {name: {} for name in required} | schema.get("properties", {})
        return {
            name: self._value(inner, root, depth)
            for name, inner in declared.items()
            if name in required or self._rng.random() < 0.5
        }

    def _number(self, schema: Mapping[str, Any], kind: str) -> Json:
        """A known one as often as any within its bounds."""
        if self._rng.random() < 0.5 and (numbers := self._of(int | float)):
            return self._rng.choice(numbers)
        low, high = schema.get("minimum"), schema.get("maximum")
        low = low if low is not None else _NUMBERS[0] if high is None else min(_NUMBERS[0], high)
        high = high if high is not None else max(_NUMBERS[1], low)
        drawn = self._rng.uniform(low, high)
        return min(max(round(drawn), low), high) if kind == "integer" else round(drawn, 2)

    def _text(self) -> str:
        texts = self._of(str)
        return self._rng.choice(texts) if texts else _ANY_TEXT

    def _of(self, kind: type | UnionType) -> list[Json]:
        return [value for value in self._known.values() if isinstance(value, kind)]


def folded(value: Json) -> str:
    """A value as it is compared with what must not be drawn: 38 and "38" are the same."""
    return str(value).strip().casefold()


def drawn_argument(tool: Tool, name: str) -> Json:
    """Some value of a parameter, always the same one."""
    return CallDraws((tool,), random.Random(tool.name)).argument(tool, name)


def _referred(reference: str, root: Mapping[str, Any]) -> Json:
    try:
        return read_pointer(root, parse_pointer(reference.removeprefix("#")))
    except (MissingError, ValueError):
        return {}


def _fitting(schema: Mapping[str, Any]) -> Callable[[Json], bool]:
    """Whether a schema takes a value; it takes any where it refers to what stands around it."""
    try:
        defect = compiled_schema(schema)
    except ValueError:
        return lambda _: True
    return lambda value: defect(value) is None
