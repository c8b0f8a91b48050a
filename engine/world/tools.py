"""The offline tool simulator: what a mock tool answers, computed from the task alone.

What the state says of a call's answer is worked out for every simulator (engine.world.admission); outputs that nothing
declares are drawn here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.schema.canonical import canonical_bytes
from engine.schema.draw import drawn_value
from engine.task import Task
from engine.types import Json, Observation, ToolCall
from engine.world import effects
from engine.world.admission import Applied, OpenAnswer, admit, applied, content, error, outputs
from engine.world.states import WorldState


class OfflineSimulator:
    """A ToolSimulator that draws what the state leaves open; it never fails."""

    async def simulate(self, state: WorldState, call: ToolCall, known: Mapping[str, Any]) -> Observation:
        """See engine.world.mapping.ToolSimulator."""
        return Observation(content=content(_completed(state.world.task, call, known)), ok=True)


def apply(task: Task, state: Json, call: ToolCall) -> Applied:
    """Validate and execute one call; everything that is wrong with it is an answer with ok false and the same state."""
    try:
        admitted = admit(task, call)
    except effects.RefusedError as refusal:
        return Applied(error(str(refusal)), ok=False, state=state)
    tool = task.tool(admitted.name)
    assert tool is not None
    done = applied(tool, state, admitted)
    if isinstance(done.answer, OpenAnswer):
        return done._replace(answer=_completed(task, admitted, done.answer.known))
    return done


def _completed(task: Task, call: ToolCall, known: Mapping[str, Any]) -> Json:
    """Exactly the declared outputs, drawn where they are not known."""
    tool = task.tool(call.name)
    assert tool is not None
    seed = b"\0".join((task.id.encode(), tool.name.encode(), canonical_bytes(call.arguments)))
    answer = {
        name: known[name] if name in known else drawn_value(seed, name, part) for name, part in outputs(tool).items()
    }
    return answer or {"status": "ok"}
