"""A world whose answers come from the mapping, offline or with a language model behind it.

call ─▶ admitted by its JSON Schema ─▶ mapping (exact → seeded → state → simulator) ─▶ observation, next world state
"""

from __future__ import annotations

from typing import Literal

from engine.task import Task
from engine.types import Json, Observation, ToolCall
from engine.world.admission import admit, refused
from engine.world.effects import RefusedError
from engine.world.mapping import Answers, TaskMapping, ToolSimulator
from engine.world.states import WorldState


class MappedSession:
    """One episode's walk through the world states of its task; calls run one at a time."""

    def __init__(self, mapping: TaskMapping, start: WorldState) -> None:
        self._mapping = mapping
        self._state = start
        self._open = True

    async def call(self, call: ToolCall) -> Observation:
        """Answer one call; what is wrong with it is an observation with ok false.

        Raises ToolError where the simulator failed."""
        try:
            admitted = admit(self._state.world.task, call)
        except RefusedError as refusal:
            return refused(str(refusal))
        observation, self._state = await self._mapping.answer(self._state, admitted)
        return observation

    async def close(self) -> Json:
        """End the session; returns the final state."""
        if self._open:
            self._open = False
            self._mapping.leave(self._state)
        return self._state.state


class MappedWorld:
    """A world whose answers come from the mapping, and from a tool simulator where the mapping has none.

    Mode `grow`: the episodes of a task share its answers; `frozen`: what is not known yet is not kept either;
    `private`: every episode has answers of its own."""

    def __init__(
        self,
        simulator: ToolSimulator,
        store: Answers | None = None,
        *,
        mode: Literal["grow", "frozen", "private"] = "grow",
    ) -> None:
        self.mapping = TaskMapping(simulator, store, frozen=mode == "frozen")
        self._private = mode == "private"

    async def open(self, task: Task, seed: int) -> MappedSession:
        """A session in the task's initial state."""
        name = f"{task.id}#{seed}" if self._private else task.id
        return MappedSession(self.mapping, await self.mapping.enter(task, name))

    async def flush(self) -> None:
        """Commit every answer given so far; await it before writing a frame that used them."""
        await self.mapping.flush()
