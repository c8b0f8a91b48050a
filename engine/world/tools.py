"""The offline tool simulator: what a mock tool answers, computed from the task alone. Pure functions.

A call is first brought into canonical form and *admitted* (known tool, arguments that fit its JSON Schema); then a
declared effect is read from, or applied to, the state; outputs that nothing declares are drawn. States are never
changed in place: a write gives a new state that shares what it did not touch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from engine.task import Task, Tool
from engine.types import Json, ToolCall
from engine.world import effects, schema
from engine.world.canonical import canonical, canonical_bytes, compact, with_defaults
from engine.world.draw import drawn
from engine.world.plain_schema import Defect


class Applied(NamedTuple):
    """What a call did: the answer, whether the world accepted it, and the state afterwards."""

    answer: Json
    ok: bool
    state: Json


def error(reason: str) -> dict[str, str]:
    """The answer of a call that failed inside the world."""
    return {"error": reason}


def malformed(reason: str = "") -> dict[str, str]:
    """The answer to a call that is not a JSON object with a name and an arguments object."""
    return error(f"malformed call: {reason}" if reason else "malformed call")


def apply(task: Task, state: Json, call: ToolCall) -> Applied:
    """Validate and execute one call; everything that is wrong with it is an answer with ok false and the same state."""
    try:
        admitted = admit(task, call)
    except effects.RefusedError as refusal:
        return Applied(error(str(refusal)), ok=False, state=state)
    return simulate(task, state, admitted)


def admit(task: Task, call: ToolCall) -> ToolCall:
    """The call with canonical arguments, schema defaults filled in.

    Raises effects.RefusedError with the text for the agent where the tool is unknown or the arguments do not fit."""
    tool = task.tool(call.name)
    if tool is None:
        raise effects.RefusedError(f"unknown tool {call.name}")
    arguments = canonical_arguments(tool, call.arguments)
    defect = schema.compiled(tool.parameters)(arguments)
    if defect is not None:
        raise effects.RefusedError(_argument_error(defect))
    return ToolCall(name=call.name, arguments=arguments)


def canonical_arguments(tool: Tool, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """Arguments in the one form that equal calls share.

    Raises effects.RefusedError for values that JSON cannot hold."""
    try:
        # Names first, so that a default is not added beside the same name in another composition.
        return with_defaults(tool.parameters, canonical(arguments))
    except ValueError as problem:
        raise effects.RefusedError(f"malformed call: {problem}") from None


def _argument_error(defect: Defect) -> str:
    name = ".".join(map(str, defect.path)) or "arguments"
    if defect.keyword == "required":
        return f"missing argument {name}"
    return f"bad argument {name}: {defect.reason}"


def simulate(task: Task, state: Json, call: ToolCall) -> Applied:
    """Execute an admitted call."""
    tool = task.tool(call.name)
    assert tool is not None
    try:
        if tool.writes:
            state, value = effects.write(tool, state, call.arguments)
            return Applied(_written_answer(task, tool, call, value), ok=True, state=state)
        if tool.effect is None:
            return Applied(_answer(task, tool, call, {}), ok=True, state=state)
        return Applied(_read_answer(task, tool, call, effects.read(tool, state, call.arguments)), ok=True, state=state)
    except effects.RefusedError as refusal:
        return Applied(error(str(refusal)), ok=False, state=state)


def _read_answer(task: Task, tool: Tool, call: ToolCall, value: Json) -> Json:
    declared = _outputs(tool)
    if isinstance(value, Mapping):
        return _answer(task, tool, call, value) if declared else value
    if not declared:
        return {"result": value}
    if len(declared) == 1:
        return {next(iter(declared)): value}
    return _answer(task, tool, call, {})


def _written_answer(task: Task, tool: Tool, call: ToolCall, value: Json) -> Json:
    return _answer(task, tool, call, value if isinstance(value, Mapping) else {})


def _answer(task: Task, tool: Tool, call: ToolCall, known: Mapping[str, Any]) -> Json:
    """Exactly the declared outputs, from ``known`` where it has them."""
    declared = _outputs(tool)
    if not declared:
        return {"status": "ok"}
    seed = b"\0".join((task.id.encode(), tool.name.encode(), canonical_bytes(call.arguments)))
    return {name: known[name] if name in known else drawn(seed, name, part) for name, part in declared.items()}


def _outputs(tool: Tool) -> Mapping[str, Any]:
    declared: Mapping[str, Any] = (tool.outputs or {}).get("properties", {})
    return declared


def content(answer: Json) -> str:
    """An answer as the text of an observation."""
    return compact(answer)
