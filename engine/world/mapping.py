"""The state-aware mapping: the same call in the same world state gets the same answer (invariant *stable-world*).

Look-up order: exact entry → response seeded by the task → what the state decides → one simulator call → stored.
Concurrent identical calls share one simulator call; when the caller that leads it is cancelled, the next one takes
over. What a call does to the state is worked out once, when its entry is made, and the state that it leads to is kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import anyio

from engine.errors import ToolError
from engine.task import Task, Tool
from engine.types import Json, Observation, ToolCall
from engine.world.admission import Applied, OpenAnswer, applied, content
from engine.world.states import Key, MappingEntry, TaskWorld, WorldState, entries_of, key_of, to_row
from engine.world.store import MappingRow, Origin

_IDLE_TASKS = 512
"""Tasks without an open session whose entries stay in memory: siblings of a group need not start together."""
_PENDING_ROWS = 1024
"""Entries after which a call waits for a commit, so that memory stays bounded."""


class Equivalent(NamedTuple):
    """A simulator's word that a call means the same as an entry of the same world state, and what that one says."""

    key: Key
    observation: Observation


class ToolSimulator(Protocol):
    """Answers calls that the mapping does not know, and the state does not decide."""

    async def simulate(self, state: WorldState, call: ToolCall, known: Mapping[str, Any]) -> Observation | Equivalent:
        """Answer an admitted call in a world state, which allows it and says the outputs `known`.

        ``state`` has the state object, the writes so far, the entries of this state and, in ``state.world``, the task
        and the entries of the other states. Raises ToolError after its own retries."""
        ...


class Answers(Protocol):
    """Where answers are kept: world.sqlite, or what a replay begins with (engine.world.vetoes)."""

    @property
    def pending(self) -> int:
        """Answers that wait for the next commit."""
        ...

    async def load(self, task: str) -> list[MappingRow]:
        """The answers about one task."""
        ...

    def put(self, row: MappingRow) -> None:
        """Keep an answer."""
        ...

    async def flush(self) -> None:
        """Commit every answer kept so far."""
        ...


@dataclass(slots=True, eq=False)
class _Flight:
    """One simulator call that several episodes wait for."""

    landed: anyio.Event = field(default_factory=anyio.Event)
    failure: str | None = None


class MappingCounts(NamedTuple):
    """How calls were answered since the start."""

    exact: int
    seeded: int
    equivalent: int
    simulated: int


class TaskMapping:
    """The mappings of a run: a tree of world states per task in memory, in front of world.sqlite.

    Without a store the answers live as long as this object; a frozen one reads its store and keeps nothing there."""

    def __init__(self, simulator: ToolSimulator, store: Answers | None = None, *, frozen: bool = False) -> None:
        self._simulator = simulator
        self._store = store
        self._frozen = frozen
        self._worlds: dict[str, TaskWorld] = {}
        self._idle: OrderedDict[str, None] = OrderedDict()
        self._loading = anyio.Lock()
        self._flights: dict[tuple[str, str, Key], _Flight] = {}
        self._exact = 0
        self._made = {"seeded": 0, "equivalent": 0, "simulated": 0}

    def __repr__(self) -> str:
        return f"<TaskMapping [{len(self._worlds)} tasks, {len(self._idle)} idle, {len(self._flights)} in flight]>"

    @property
    def counts(self) -> MappingCounts:
        """Answers so far, by how they were found."""
        return MappingCounts(exact=self._exact, **self._made)

    async def enter(self, task: Task, name: str) -> WorldState:
        """The initial state of the task's world of that name (its id, where all episodes share it), its entries loaded;
        pair with :meth:`leave`."""
        world = self._worlds.get(name)
        if world is None:
            async with self._loading:
                world = self._worlds.get(name) or await self._load(task, name)
        world.sessions += 1
        self._idle.pop(name, None)
        return world.start

    def leave(self, state: WorldState) -> None:
        """A session ended; where a store keeps them, worlds that nobody used for long leave the memory."""
        state.world.sessions -= 1
        if state.world.sessions == 0 and self._store is not None:
            self._idle[state.world.name] = None
            if len(self._idle) > _IDLE_TASKS:
                oldest, _ = self._idle.popitem(last=False)
                del self._worlds[oldest]

    async def flush(self) -> None:
        """Commit every answer given so far; await it before writing a frame that used them."""
        if self._store is not None:
            await self._store.flush()

    async def answer(self, state: WorldState, call: ToolCall) -> tuple[Observation, WorldState]:
        """The answer to an admitted call, and the state that the episode is in afterwards.

        Raises ToolError where the simulator failed."""
        key = key_of(call)
        entry = state.entries.get(key)
        if entry is None:
            entry = await self._resolve(state, key, call)
        else:
            self._exact += 1
        return entry.observation, state.after(key, call) if entry.moves else state

    async def _load(self, task: Task, name: str) -> TaskWorld:
        if self._store is None:
            world = TaskWorld(task=task, name=name, entries={})
        else:
            world = TaskWorld(task=task, name=name, entries=entries_of(task, await self._store.load(name)))
        self._worlds[name] = world
        return world

    async def _resolve(self, state: WorldState, key: Key, call: ToolCall) -> MappingEntry:
        """Make the entry of a call, or wait for the caller that is making it."""
        place = (state.world.name, state.hash, key)
        while (entry := state.entries.get(key)) is None:
            flight = self._flights.get(place)
            if flight is None:
                return await self._lead(place, state, call)
            await flight.landed.wait()
            if flight.failure is not None:
                raise ToolError(flight.failure)
        self._exact += 1
        return entry

    async def _lead(self, place: tuple[str, str, Key], state: WorldState, call: ToolCall) -> MappingEntry:
        key = place[2]
        flight = self._flights[place] = _Flight()
        try:
            entry, written = await self._make(state, key, call)
        except ToolError as error:
            flight.failure = str(error)
            raise
        else:
            # No await between making and keeping it: nobody ever sees an answer that is not an entry.
            state.entries[key] = entry
            self._made[entry.source] += 1
            if entry.moves:
                state.lead(key, call, written)
            if self._store is not None and not self._frozen:
                self._store.put(to_row(state, key, entry))
        finally:
            del self._flights[place]
            flight.landed.set()
        if self._store is not None and self._store.pending >= _PENDING_ROWS:
            await self._store.flush()
        return entry

    async def _make(self, state: WorldState, key: Key, call: ToolCall) -> tuple[MappingEntry, Json]:
        """The entry of a call, and the object of the state that it leads to if it moves."""
        tool = state.world.task.tool(call.name)
        assert tool is not None
        done, source = ruled(state, tool, key, call)
        same_as = None
        if isinstance(done.answer, OpenAnswer):
            said = await self._simulator.simulate(state, call, done.answer.known)
            if isinstance(said, Equivalent):
                source, same_as, said = "equivalent", said.key, said.observation
        else:
            said = Observation(content=content(done.answer), ok=done.ok)
        moves = said.ok and tool.writes
        return MappingEntry(call=call, observation=said, source=source, moves=moves, same_as=same_as), done.state


def ruled(state: WorldState, tool: Tool, key: Key, call: ToolCall) -> tuple[Applied, Origin]:
    """What the task alone says of a call: a response that it fixes, else what its tool declares.

    A response that is ok cannot do what the state does not allow."""
    seeded = state.world.seeded(key, state.writes)
    if seeded is not None and not seeded.ok:
        return Applied(seeded.answer, ok=False, state=state.state), "seeded"
    done = applied(tool, state.state, call)
    if seeded is None or (tool.writes and not done.ok):
        return done, "simulated"
    return Applied(seeded.answer, ok=True, state=done.state), "seeded"
