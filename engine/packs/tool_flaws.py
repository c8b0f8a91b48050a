"""Flaws of tools: calls that the world always refuses, and outputs that their effect does not give."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from engine.packs.problems import Found
from engine.packs.reach import Reach, Reached, shown
from engine.schema.validate import member_defect
from engine.task import Task, Tool
from engine.types import Json
from engine.world.admission import outputs

_COMBINED = frozenset({"$ref", "allOf", "anyOf", "if", "oneOf"})
"""Keywords with which a schema may declare its properties elsewhere."""


def tool_flaws(task: Task, reach: Reach) -> Iterator[Found]:
    """Every flaw of the tools of a task without problems."""
    seeded = {response.tool for response in task.world.responses}
    for index, tool in enumerate(task.tools):
        field = f"tools[{index}]"
        yield from _undeclared(tool.parameters, f"{field}.parameters")
        yield from _undeclared(tool.outputs, f"{field}.outputs")
        refusal = reach.refusal(tool)
        if refusal is None:
            # What responses answer is not said by the effect.
            yield from _outputs(tool, reach, f"{field}.outputs") if tool.name not in seeded else ()
        elif not refusal.empty:
            yield Found(f"{field}.effect.{refusal.field}", refusal.reason, f"every call of {tool.name} is refused")


def _undeclared(schema: Json, field: str) -> Iterator[Found]:
    """Names that a schema requires and does not declare, most likely written in two ways."""
    if not isinstance(schema, Mapping) or not _COMBINED.isdisjoint(schema):
        return
    declared = schema.get("properties")
    if declared is not None and not isinstance(schema.get("additionalProperties"), Mapping):
        for name in schema.get("required", ()):
            if name not in declared:
                known = ", ".join(declared) or "(none)"
                yield Found(
                    f"{field}.required", f"requires {name!r}, which is none of the properties", f"they are {known}"
                )
    for name, inner in (declared or {}).items():
        yield from _undeclared(inner, f"{field}.properties.{name}")
    yield from _undeclared(schema.get("items"), f"{field}.items")


def _outputs(tool: Tool, reach: Reach, field: str) -> Iterator[Found]:
    """Declared outputs that no value of the effect has, or that it has in another type."""
    declared = outputs(tool)
    if not declared or tool.effect is None or tool.effect.get("write") is True:
        return
    values = reach.given(tool)
    if any(one.parameter is not None for one in values):
        return
    if any(isinstance(one.value, Mapping) for one in values):
        for name in declared:
            found = reach.given(tool, name)
            if not found:
                yield Found(
                    f"{field}.properties.{name}",
                    f"the effect of {tool.name} gives no {name!r}, so that it is made up",
                    f"{'write' if tool.writes else 'let the state have'} it, or leave it out",
                )
            yield from _misfit(tool, name, found, field)
    elif not tool.writes and len(declared) == 1:
        yield from _misfit(tool, next(iter(declared)), values, field)
    else:
        yield Found(
            field,
            f"the effect of {tool.name} gives no object, so that all outputs are made up",
            "let it give an object",
        )


def _misfit(tool: Tool, name: str, values: list[Reached], field: str) -> Iterator[Found]:
    """The first value of an output that its schema does not admit."""
    for one in values:
        if reason := _defect(tool, name, one):
            yield Found(
                f"{field}.properties.{name}",
                f"the effect of {tool.name} gives {shown(one.value)}: {reason}",
                "let state and outputs agree",
            )
            return


def _defect(tool: Tool, name: str, one: Reached) -> str:
    if not one.is_open:
        defect = member_defect(tool.outputs or {}, name, one.value)
        return "" if defect is None else defect.reason
    given, wanted = _types(one), _json_types(outputs(tool)[name])
    return f"expected {' or '.join(sorted(wanted))}" if given and wanted and given.isdisjoint(wanted) else ""


def _types(one: Reached) -> set[str]:
    """The JSON types that a template can become; empty where nothing is said of them."""
    if (schema := one.parameter) is not None:
        return _json_types(schema)
    return {"string" if isinstance(one.value, str) else "object" if isinstance(one.value, Mapping) else "array"}


def _json_types(schema: Json) -> set[str]:
    """The types that a schema names; a number may be an integer."""
    named: Any = schema.get("type", ()) if isinstance(schema, Mapping) else ()
    types = {named} if isinstance(named, str) else set(named)
    return types | {"integer", "number"} if types & {"integer", "number"} else types
