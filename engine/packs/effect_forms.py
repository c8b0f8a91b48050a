"""The forms that a tool's effect has, one entry each: what it means, an example, the JSON Schema of it.

engine.packs.problems refuses whatever a schema here refuses, and more: pointers and placeholders that lead nowhere.
engine.world.effects does what they say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

_POINTER = {
    "type": "string",
    "pattern": "^(/|$)",
    "description": "JSON Pointer (RFC 6901) into the state; `{name}` in it is that argument.",
}
_TEMPLATE = {"description": "Any JSON; a text that is `{name}` is that argument, one that contains it has it inside."}


class EffectForm(NamedTuple):
    """One form of an effect."""

    says: str
    """One sentence: what a call does."""
    example: Mapping[str, Any]
    schema: Mapping[str, Any]
    """JSON Schema of an effect of this form."""


def _form(
    says: str, example: Mapping[str, Any], optional: frozenset[str] = frozenset(), **properties: Any
) -> EffectForm:
    schema = {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in optional],
        "additionalProperties": False,
    }
    return EffectForm(says, example, schema)


EFFECTS = (
    _form(
        "Reads: the answer is what the state has at the pointer; where it has nothing, the call fails: `not found`.",
        {"read": "/orders/{id}"},
        read=_POINTER,
    ),
    _form(
        "Writes: the filled template is put at the pointer, and the answer is taken from it. Where a value of "
        "`requires` is not what the state has there, the call fails with `not possible`, where the parent of the "
        "pointer is absent with `not found`, and nothing changes.",
        {
            "write": "/orders/{id}",
            "value": {"id": "{id}", "quantity": "{quantity}", "note": "{quantity} of {item}"},
            "requires": {"/stock/{item}/open": True},
        },
        frozenset({"requires"}),
        write=_POINTER | {"minLength": 1},
        value=_TEMPLATE,
        requires={
            "type": "object",
            "propertyNames": _POINTER,
            "additionalProperties": _TEMPLATE,
            "description": "What the state must have, by pointer.",
        },
    ),
    _form(
        "Writes something that the state does not hold: the state stays as it is, the answer is a response of the "
        "task's or made up, and the calls after it are in another state of the world.",
        {"write": True},
        write={"const": True, "description": "Not a pointer: the state stays as it is."},
    ),
)
"""Every form of an effect."""


def effect_schema() -> dict[str, Any]:
    """Returns the JSON Schema of an effect, with the sentence and the example of each form."""
    return {
        "description": "What a call of the tool does to the state of the world.",
        "oneOf": [{"description": form.says, "examples": [form.example], **form.schema} for form in EFFECTS],
    }
