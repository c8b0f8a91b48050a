"""World states: the tree that all episodes of a task share, and the answers known in each state.

A state is identified by the chain hash of the write calls that led to it::

    start ──write a──▶ a ──write b──▶ ab        a read after a write sees the write;
      └────write b──▶ b                         an episode that did not write reads another state's answers
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, NamedTuple

import orjson

from engine.schema.canonical import canonical_bytes
from engine.schema.frozen import frozen
from engine.task import SeededResponse, Task
from engine.types import Json, Observation, ToolCall
from engine.world import effects
from engine.world.admission import canonical_arguments
from engine.world.store import MappingRow, Origin


class Key(NamedTuple):
    """A call in canonical form: equal keys are the same call."""

    tool: str
    arguments: bytes


def key_of(call: ToolCall) -> Key:
    """The key of a call whose arguments are canonical."""
    return Key(call.name, canonical_bytes(call.arguments))


@dataclass(frozen=True, slots=True, kw_only=True)
class MappingEntry:
    """One answer of a mapping."""

    call: ToolCall
    observation: Observation
    source: Origin
    moves: bool
    """Whether the call was a successful write, which leads to another state."""
    same_as: Key | None = None
    """The entry of the same state that an equivalent one points at."""


@dataclass(slots=True, kw_only=True, eq=False)
class WorldState:
    """One state of a task's world."""

    world: TaskWorld
    hash: str
    writes: tuple[ToolCall, ...]
    state: Json
    entries: dict[Key, MappingEntry]
    following: dict[Key, WorldState] = field(default_factory=dict)
    """States that successful writes lead to."""

    def after(self, key: Key, call: ToolCall) -> WorldState:
        """The state that a successful write leads to; the same one for every episode.

        Only a write that was answered in another process is applied here."""
        known = self.following.get(key)
        if known is None:
            tool = self.world.task.tool(call.name)
            assert tool is not None
            known = self.lead(key, call, effects.write(tool, self.state, call.arguments).state)
        return known

    def lead(self, key: Key, call: ToolCall, written: Json) -> WorldState:
        """Let a successful write lead to a state, of which `written` is the object; returns that state."""
        made = self.world.state(hash_after(self.hash, key), (*self.writes, call), written)
        self.following[key] = made
        return made


def hash_after(state: str, key: Key) -> str:
    """The hash of the state that a successful write leads to."""
    return sha256(b"\0".join((state.encode(), key.tool.encode(), key.arguments))).hexdigest()


@dataclass(slots=True, kw_only=True, eq=False)
class TaskWorld:
    """Everything known about one task's world."""

    task: Task
    name: str
    """What its answers are kept under: the task's id, and the episode's seed where every episode has its own."""
    entries: dict[str, dict[Key, MappingEntry]]
    """By world hash: the paper's mapping M, also of states that no episode of this process has reached yet."""
    sessions: int = 0
    start: WorldState = field(init=False)
    _seeded: Mapping[Key, list[tuple[frozenset[Key], SeededResponse]]] = field(init=False)

    def __post_init__(self) -> None:
        self.start = self.state("", (), self.task.world.state)
        self._seeded = _seeded(self.task)

    def state(self, digest: str, writes: tuple[ToolCall, ...], state: Json) -> WorldState:
        """The state with that hash, with the answers known about it."""
        entries = self.entries.setdefault(digest, {})
        # Shared by every episode that comes here, and kept as the final state of those that end here.
        return WorldState(world=self, hash=digest, writes=writes, state=frozen(state), entries=entries)

    def seeded(self, key: Key, writes: tuple[ToolCall, ...]) -> SeededResponse | None:
        """The response that the task fixes for a call once the writes it waits for are done; the pickiest one wins."""
        candidates = self._seeded.get(key)
        if not candidates:
            return None
        done = {key_of(write) for write in writes}
        return next((seeded for after, seeded in candidates if after <= done), None)


def _seeded(task: Task) -> Mapping[Key, list[tuple[frozenset[Key], SeededResponse]]]:
    found: dict[Key, list[tuple[frozenset[Key], SeededResponse]]] = {}
    for seeded in task.world.responses:
        after = frozenset(_packed(task, call["tool"], call["arguments"]) for call in seeded.after)
        found.setdefault(_packed(task, seeded.tool, seeded.arguments), []).append((after, seeded))
    for candidates in found.values():
        candidates.sort(key=lambda candidate: -len(candidate[0]))
    return found


def _packed(task: Task, name: str, arguments: Mapping[str, Any]) -> Key:
    """The key of a call that a validated pack names."""
    tool = task.tool(name)
    assert tool is not None
    return key_of(ToolCall(name=name, arguments=canonical_arguments(tool, arguments)))


def to_row(state: WorldState, key: Key, entry: MappingEntry) -> MappingRow:
    """An entry as world.sqlite holds it."""
    return MappingRow(
        task=state.world.name,
        world=state.hash,
        tool=key.tool,
        arguments=key.arguments.decode(),
        content=entry.observation.content,
        ok=int(entry.observation.ok),
        source=entry.source,
        same_as=entry.same_as and same_as_text(entry.same_as),
    )


def same_as_text(key: Key) -> str:
    """The key of an entry as the row of an equivalent one holds it."""
    return orjson.dumps([key.tool, key.arguments.decode()]).decode()


def entries_of(task: Task, rows: Iterable[MappingRow]) -> dict[str, dict[Key, MappingEntry]]:
    """The entries of a task's rows, by world hash."""
    entries: dict[str, dict[Key, MappingEntry]] = {}
    for row in rows:
        key, entry = from_row(task, row)
        entries.setdefault(row.world, {})[key] = entry
    return entries


def from_row(task: Task, row: MappingRow) -> tuple[Key, MappingEntry]:
    """The entry of a row."""
    call = ToolCall(name=row.tool, arguments=orjson.loads(row.arguments))
    tool = task.tool(row.tool)
    entry = MappingEntry(
        call=call,
        observation=Observation(content=row.content, ok=bool(row.ok)),
        source=row.source,
        moves=bool(row.ok) and tool is not None and tool.writes,
        same_as=key_of_same(row),
    )
    return key_of_row(row), entry


def key_of_row(row: MappingRow) -> Key:
    """The key of a row's call."""
    return Key(row.tool, row.arguments.encode())


def key_of_same(row: MappingRow) -> Key | None:
    """The key of the call whose answer a row was given, where it was."""
    if row.same_as is None:
        return None
    tool, arguments = orjson.loads(row.same_as)
    return Key(tool, arguments.encode())
