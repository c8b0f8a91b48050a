"""Which calls a world takes, and what the task alone says of their answers, whoever makes up the rest. Pure functions.

A call is first brought into canonical form and *admitted* (known tool, arguments that fit its JSON Schema). Then what
its tool declares is *applied* to the state, once for a call in a state: that gives the answer or a part of it, and the
state afterwards. States are never changed in place: a write gives a new state that shares what it did not touch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from engine.schema import validate as schema
from engine.schema.canonical import canonical_object, compact
from engine.schema.plain import Defect
from engine.task import Task, Tool
from engine.types import Json, Observation, ToolCall
from engine.world import effects


class OpenAnswer(NamedTuple):
    """An answer that a simulator has to complete; the state says these outputs of it."""

    known: Mapping[str, Any]


class Applied(NamedTuple):
    """What a call did: the answer, whether the world accepted it, and the state afterwards."""

    answer: Json
    """Of type Open as long as a simulator has to complete it."""
    ok: bool
    state: Json


def admit(task: Task, call: ToolCall) -> ToolCall:
    """The call with canonical arguments, schema defaults filled in.

    Raises effects.RefusedError with the text for the agent where the tool is unknown or the arguments do not fit."""
    tool = task.tool(call.name)
    if tool is None:
        raise effects.RefusedError(f"unknown tool {call.name}")
    arguments = canonical_arguments(tool, call.arguments)
    defect = schema.compiled_schema(tool.parameters)(arguments)
    if defect is not None:
        raise effects.RefusedError(_argument_error(defect))
    return ToolCall(name=call.name, arguments=arguments)


def canonical_arguments(tool: Tool, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """Arguments in the one form that equal calls share.

    Raises effects.RefusedError for values that JSON cannot hold."""
    try:
        return canonical_object(tool.parameters, arguments)
    except ValueError as problem:
        raise effects.RefusedError(f"malformed call: {problem}") from None


def _argument_error(defect: Defect) -> str:
    name = ".".join(map(str, defect.path)) or "arguments"
    if defect.keyword == "required":
        return f"missing argument {name}"
    return f"bad argument {name}: {defect.reason}"


def applied(tool: Tool, state: Json, call: ToolCall) -> Applied:
    """Apply what the tool declares to a state, for an admitted call; a refusal leaves the state as it is."""
    value: Json = None
    try:
        if tool.writes:
            after, value = effects.write(tool, state, call.arguments)
        else:
            after = state
            if tool.effect is not None:
                value = effects.read(tool, state, call.arguments)
    except effects.RefusedError as refusal:
        return Applied(error(str(refusal)), ok=False, state=state)
    return Applied(_answer(tool, value), ok=True, state=after)


def _answer(tool: Tool, value: Json) -> Json:
    """The answer that the read or written value gives; open where it leaves a declared output to be said."""
    declared, effect = outputs(tool), tool.effect
    if effect is None or effect.get("write") is True:
        return OpenAnswer({})
    if not isinstance(value, Mapping):
        if not tool.writes and len(declared) <= 1:
            return {next(iter(declared), "result"): value}
        value = {}
    if not declared:
        return {"status": "ok"} if tool.writes else value
    return {name: value[name] for name in declared} if declared.keys() <= value.keys() else OpenAnswer(value)


def outputs(tool: Tool) -> Mapping[str, Any]:
    """The JSON Schemas of a tool's declared outputs, by name."""
    declared: Mapping[str, Any] = (tool.outputs or {}).get("properties", {})
    return declared


# --- what the agent reads -------------------------------------------------------------------------------------------


def error(reason: str) -> dict[str, str]:
    """The answer of a call that failed inside the world."""
    return {"error": reason}


def content(answer: Json) -> str:
    """An answer as the text of an observation."""
    return compact(answer)


def refused(reason: str) -> Observation:
    """The observation of a call that failed inside the world."""
    return Observation(content=content(error(reason)), ok=False)
