"""The offline tool simulator: what a mock tool answers, computed from the task alone. Pure functions.

A call is first brought into canonical form and *admitted* (known tool, arguments that fit its JSON Schema); then a
declared effect is read from, or applied to, the state; outputs that nothing declares are drawn. States are never
changed in place: a write gives a new state that shares what it did not touch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from engine.schema import validate
from engine.schema.canonical import canonical, canonical_bytes, compact, with_defaults
from engine.schema.draw import drawn
from engine.schema.plain import Defect
from engine.task import Task, Tool
from engine.types import Json, Observation, ToolCall
from engine.world import effects


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
    defect = validate.compiled(tool.parameters)(arguments)
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
    """Execute an admitted call; outputs that the state does not say are drawn."""
    tool = task.tool(call.name)
    assert tool is not None
    try:
        after = effects.write(tool, state, call.arguments).state if tool.writes else state
        return Applied(_answer(task, tool, call, known(tool, state, call)), ok=True, state=after)
    except effects.RefusedError as refusal:
        return Applied(error(str(refusal)), ok=False, state=state)


def known(tool: Tool, state: Json, call: ToolCall) -> Mapping[str, Any]:
    """What the state alone says of an admitted call's answer: all of it, some of its outputs, or nothing.

    Raises effects.RefusedError where the state does not allow the call."""
    declared, effect = _outputs(tool), tool.effect
    value: Json = None
    if tool.writes:
        value = effects.write(tool, state, call.arguments).value
    elif effect is not None:
        value = effects.read(tool, state, call.arguments)
        if not isinstance(value, Mapping):
            name = next(iter(declared), "result")
            return {name: value} if len(declared) <= 1 else {}
    return value if isinstance(value, Mapping) else {}


def settled(task: Task, state: Json, call: ToolCall) -> Observation | None:
    """The answer that the state alone gives to an admitted call; None where it leaves something to say."""
    tool = task.tool(call.name)
    assert tool is not None
    try:
        said = known(tool, state, call)
    except effects.RefusedError as refusal:
        return Observation(content=content(error(str(refusal))), ok=False)
    return Observation(content=content(_answer(task, tool, call, said)), ok=True) if _decided(tool, said) else None


def _decided(tool: Tool, known: Mapping[str, Any]) -> bool:
    """Whether `known` is all there is to say: a declared effect leaves no output open."""
    declared_effect = tool.effect is not None and tool.effect.get("write") is not True
    return declared_effect and _outputs(tool).keys() <= known.keys()


def _answer(task: Task, tool: Tool, call: ToolCall, said: Mapping[str, Any]) -> Json:
    """Exactly the declared outputs, from `said` where it has them; what a read finds, where none are declared."""
    declared = _outputs(tool)
    if not declared:
        return said if tool.effect is not None and not tool.writes else {"status": "ok"}
    seed = b"\0".join((task.id.encode(), tool.name.encode(), canonical_bytes(call.arguments)))
    return {name: said[name] if name in said else drawn(seed, name, part) for name, part in declared.items()}


def _outputs(tool: Tool) -> Mapping[str, Any]:
    declared: Mapping[str, Any] = (tool.outputs or {}).get("properties", {})
    return declared


def content(answer: Json) -> str:
    """An answer as the text of an observation."""
    return compact(answer)
