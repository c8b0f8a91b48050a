"""Mapping entries as JSON Lines: `synth-engine world export` writes them, `world.mapping` starts a run from them.

::

    {"task": "shop-1", "world": "", "tool": "find_book", "arguments": {"title": "emma"}, "answer": {"shelf": "B2"},
     "ok": true, "source": "equivalent", "same_as": {"title": "Emma"}}

`world` is the chain hash of the writes before (engine.world.states), `same_as` the arguments of the call whose answer
this one was given. A file is outside data: each line is held against the run's tasks, and nothing in it can be other
than what a task says itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import orjson
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from engine.errors import ConfigError
from engine.packs.problems import DEPTH, Problem
from engine.schema.recordable import deeper_than
from engine.task import Task
from engine.types import Observation, ToolCall
from engine.world.admission import OpenAnswer, admit, canonical_arguments, content
from engine.world.effects import RefusedError
from engine.world.mapping import ruled
from engine.world.meaning import differing
from engine.world.states import Key, MappingEntry, TaskWorld, WorldState, entries_of, key_of, key_of_row, same_as_text
from engine.world.store import MappingRow, Origin

_HASH = r"^([0-9a-f]{64})?$"


class _Line(BaseModel):
    """One line of a file."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    task: str
    world: Annotated[str, StringConstraints(pattern=_HASH)]
    tool: str
    arguments: dict[str, Any]
    answer: Any
    ok: bool
    source: Origin
    same_as: dict[str, Any] | None


def exported(row: MappingRow) -> bytes:
    """The line of an entry."""
    same = None if row.same_as is None else orjson.loads(orjson.loads(row.same_as)[1])
    value = {
        "task": row.task,
        "world": row.world,
        "tool": row.tool,
        "arguments": orjson.loads(row.arguments),
        "answer": orjson.loads(row.content),
        "ok": bool(row.ok),
        "source": row.source,
        "same_as": same,
    }
    return orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE)


def read_exported(file: Path, tasks: Sequence[Task]) -> list[MappingRow]:
    """The entries of a file, as a run over `tasks` has them.

    Raises ConfigError naming file, line, task, field, reason and remedy of the first problem."""
    try:
        lines = file.read_bytes().split(b"\n")
    except OSError as error:
        raise ConfigError(f"world.mapping: {file}: cannot be read: {error.strerror}; check the path") from error
    known = {task.id: task for task in tasks}
    read: dict[str, dict[tuple[str, Key], tuple[_Place, MappingRow]]] = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            place, row = _row(_Place(file, number), line, known)
            first, _ = read.setdefault(row.task, {}).setdefault((row.world, key_of_row(row)), (place, row))
            if first is not place:
                raise place.wrong("arguments", f"line {first.line} answers the same call", "remove one of them")
    for task, entries in read.items():
        places = {key: place for key, (place, _) in entries.items()}
        _check_world(known[task], [row for _, row in entries.values()], places)
    return [row for entries in read.values() for _, row in entries.values()]


class _Place(NamedTuple):
    """Where something is wrong."""

    file: Path
    line: int
    task: str = ""

    def wrong(self, field: str, reason: str, remedy: str) -> ConfigError:
        """The error that says so."""
        problem = Problem(
            path=str(self.file), line=self.line, task=self.task, field=field, reason=reason, remedy=remedy
        )
        return ConfigError(f"world.mapping: {problem}")


def _row(place: _Place, line: bytes, tasks: Mapping[str, Task]) -> tuple[_Place, MappingRow]:
    """The row of a line."""
    entry = _parsed(place, line)
    place = place._replace(task=entry.task)
    task = tasks.get(entry.task)
    if task is None:
        raise place.wrong(
            "task", "the pack has no such task", "export from a run of this pack, not with private worlds"
        )
    tool = task.tool(entry.tool)
    if tool is None:
        raise place.wrong("tool", f"the task has no tool {entry.tool!r}", "export from a run of this pack")
    try:
        call = admit(task, ToolCall(name=tool.name, arguments=entry.arguments))
        same = None if entry.same_as is None else canonical_arguments(tool, entry.same_as)
    except RefusedError as refusal:
        raise place.wrong("arguments", str(refusal), "give arguments that fit the tool's parameters") from None
    if same is not None and (name := differing(tool, call.arguments, same)) is not None:
        raise place.wrong(
            "same_as", f"{name} differs, and may not", "calls that differ in it have answers of their own"
        )
    other = None if same is None else key_of(ToolCall(name=tool.name, arguments=same))
    return place, MappingRow(
        task=task.id,
        world=entry.world,
        tool=tool.name,
        arguments=key_of(call).arguments.decode(),
        content=content(entry.answer),
        ok=int(entry.ok),
        source="imported",
        same_as=None if other is None else same_as_text(other),
    )


def _parsed(place: _Place, line: bytes) -> _Line:
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise place.wrong("", f"not JSON: {error}", "one entry a line; export it again if it was cut off") from None
    if deeper_than(DEPTH, value):
        raise place.wrong("", f"nests deeper than {DEPTH} levels", "no tool needs that")
    try:
        return _Line.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise place.wrong(field, first["msg"], "the fields are those of `synth-engine world export`") from None


# --- what no line can say alone -------------------------------------------------------------------------------------


def _check_world(task: Task, rows: Sequence[MappingRow], places: Mapping[tuple[str, Key], _Place]) -> None:
    """Hold the entries of a task against each other, and against what the task says itself."""
    world = TaskWorld(task=task, name=task.id, entries=entries_of(task, rows))
    for digest, entries in world.entries.items():
        for key, entry in entries.items():
            _check_same(places[digest, key], key, entry, entries)
    for state in _reached(world.start):
        for key, entry in state.entries.items():
            _check_ruled(places[state.hash, key], state, key, entry)


def _check_same(place: _Place, key: Key, entry: MappingEntry, entries: Mapping[Key, MappingEntry]) -> None:
    seen, at = {key}, entry
    while at.same_as is not None and (other := entries.get(at.same_as)) is not None:
        if at.same_as in seen:
            raise place.wrong("same_as", "leads back to this call", "point at a call with an answer of its own")
        if other.observation != entry.observation:
            raise place.wrong("same_as", "the call that it points at has another answer", "give both the same answer")
        seen.add(at.same_as)
        at = other


def _check_ruled(place: _Place, state: WorldState, key: Key, entry: MappingEntry) -> None:
    tool = state.world.task.tool(key.tool)
    assert tool is not None
    done, _ = ruled(state, tool, key, entry.call)
    if isinstance(done.answer, OpenAnswer):
        return
    said = Observation(content=content(done.answer), ok=done.ok)
    if said != entry.observation:
        told = f"the task itself says {said.content} (ok {str(said.ok).lower()})"
        raise place.wrong("answer", told, "correct it, or export from a run of this pack")


def _reached(start: WorldState) -> Iterator[WorldState]:
    """The states that the entries lead to. The entries of each are checked before its writes are done."""
    waiting = [start]
    while waiting:
        state = waiting.pop()
        yield state
        waiting += [state.after(key, entry.call) for key, entry in state.entries.items() if entry.moves]
