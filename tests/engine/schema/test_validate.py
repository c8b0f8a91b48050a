"""engine.schema.validate: one member of an object under the object's schema."""

from typing import Any

import pytest

from engine.schema.validate import member_defect
from engine.types import Json
from tests.parts.worlds import TEXT


@pytest.mark.parametrize(
    ("schema", "value", "defect"),
    [
        ({"properties": {"a": TEXT}, "required": ["b"], "additionalProperties": False}, "x", None),
        ({"properties": {"a": TEXT}, "minProperties": 2}, "x", None),
        ({"properties": {"a": TEXT}}, 1, "expected string"),
        ({"additionalProperties": False}, 1, "unexpected"),
        ({"properties": {"a": {"$ref": "#/$defs/n"}}, "$defs": {"n": {"type": "integer"}}}, "x", "expected integer"),
        ({"properties": {"a": {"$ref": "#/allOf/0"}}, "allOf": [{"type": "integer"}]}, "x", None),
    ],
)
def test_a_member_is_judged_alone(schema: dict[str, Any], value: Json, defect: str | None):
    """By all that the object's schema says of it, and by nothing that it says of the others."""
    found = member_defect(schema, "a", value)
    assert (found and found.reason) == defect
