"""The JSON Schemas (draft 2020-12) of a pack's lines, made from what validates them: `synth-engine pack schema`.

The fields and what is said of them are those of engine.task, effects those of engine.packs.effect_forms, checks those
of engine.reward.check_kinds. A line that fits its schema has the right shape; `synth-engine pack check` refuses more:
names, placeholders and arguments that nothing in the task has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from engine.packs.effect_forms import effect_schema
from engine.packs.pack import FUNCTION, PACK_FORMAT, STRICT, PackHeader
from engine.packs.problems import TOOL_NAME
from engine.reward.check_kinds import CHECK, check_schema
from engine.task import Task
from engine.types import Json

_EFFECT = {"$ref": "#/$defs/effect"}
_CALL = {"$ref": "#/$defs/call"}
_CALL_SCHEMA = {
    "description": "A call that an agent could make.",
    "type": "object",
    "properties": {
        "tool": {"type": "string", "description": "A tool of the task that writes."},
        "arguments": {"type": "object", "description": "Arguments that its parameters admit."},
    },
    "required": ["tool", "arguments"],
    "additionalProperties": False,
}


class _Untitled(GenerateJsonSchema):
    """Leaves out titles that only repeat the name of a field."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        """See pydantic."""
        del schema
        return False


def task_schema() -> dict[str, Any]:
    """Returns the JSON Schema of a line that holds a task."""
    schema = _schema_of(Task, "A task: one line of a synth-engine pack after its header")
    definitions = schema["$defs"]
    definitions["Tool"] = _nested(definitions["Tool"])
    definitions["RubricItem"]["properties"]["check"] |= {"anyOf": [CHECK, {"type": "null"}]}
    definitions["SeededResponse"]["properties"]["after"]["items"] = _CALL
    definitions |= {"effect": effect_schema(), "call": _CALL_SCHEMA, **check_schema()["$defs"]}
    return schema


def header_schema() -> dict[str, Any]:
    """Returns the JSON Schema of the first line."""
    schema = _schema_of(PackHeader, "The header: the first line of a synth-engine pack")
    schema["properties"]["format"]["const"] = PACK_FORMAT
    return schema


def _schema_of(kind: type, title: str) -> dict[str, Any]:
    # In a list, as engine.packs.pack validates it.
    adapter = TypeAdapter(list[kind], config=STRICT | {"use_attribute_docstrings": True})  # type: ignore[valid-type]
    made = adapter.json_schema(schema_generator=_Untitled)
    definitions = made["$defs"]
    schema = definitions.pop(kind.__name__)
    rest = {"$defs": definitions} if definitions else {}
    return {"$schema": GenerateJsonSchema.schema_dialect, **schema, "title": title, **rest}


def _nested(tool: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a tool as a pack has it: name, description and parameters inside of an OpenAI function object."""
    properties: dict[str, Json] = dict(tool["properties"])
    inner = {name: properties.pop(name) for name in tool["properties"] if name in FUNCTION}
    inner["name"] = inner["name"] | {"pattern": f"^{TOOL_NAME.pattern}$"}
    properties["effect"] = properties["effect"] | {"anyOf": [_EFFECT, {"type": "null"}]}
    function = {
        "description": "The OpenAI function object, which the agent sees.",
        "type": "object",
        "properties": inner,
        "required": [name for name in inner if name in tool["required"]],
        "additionalProperties": False,
    }
    return {
        **tool,
        "properties": {"type": {"const": "function", "description": "As in OpenAI's format."}, "function": function}
        | properties,
        "required": ["type", "function"],
    }
