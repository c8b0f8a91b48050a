"""Task packs: JSON Lines, optionally zstd, a header and one task a line, validated into engine.task values.

::

    {"format": 1, "pack": "tiny", "description": "...", "license": "..."}
    {"id": "tiny-000123", "instruction": "...", "tools": [{"type": "function", "function": {...}, "outputs": {...},
     "effect": {...}}], "world": {"state": {...}}, "rubric": {"subgoals": [...]}, ...}

A pack is outside data: whatever is wrong with it is reported as *file:line, task, field, reason, remedy*, and nothing
of it runs as code (checks are data, patterns run on RE2, `$ref` is local).
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import orjson
import pydantic
import zstandard

from engine.errors import ConfigError
from engine.packs.flaws import task_flaws
from engine.packs.problems import Found, Problem, nesting_problems, task_problems
from engine.schema.canonical import compact
from engine.schema.frozen import frozen
from engine.task import RubricItem, SeededResponse, Task, Tool
from engine.types import Json

PACK_FORMAT = 1
MAX_BYTES = 1 << 30
"""Bound of a decompressed pack."""
FUNCTION = frozenset({"name", "description", "parameters"})
"""What of a tool stands in its function object."""
_SCHEMAS = frozenset({"parameters", "outputs"})
_CHUNK = 1 << 10  # zstd expands a chunk at most some 30,000 times: 32 MiB at once

STRICT = pydantic.ConfigDict(extra="forbid")
"""How lines are validated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackHeader:
    """The first line of a pack."""

    format: Annotated[int, pydantic.Strict()]
    """Version of the format."""
    pack: str
    """Name of the pack."""
    description: str = ""
    """What is in it, for people."""
    license: str = ""
    """Under what the tasks may be used, such as an SPDX identifier."""


# A list, because pydantic passes a configuration on to standard dataclasses, but does not take one for them.
_HEADERS = pydantic.TypeAdapter(list[PackHeader], config=STRICT)
_TASKS = pydantic.TypeAdapter(list[Task], config=STRICT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """A validated pack."""

    header: PackHeader
    tasks: tuple[Task, ...]
    sha256: str
    """Of the uncompressed lines, so that packing does not change it."""


def load_pack(path: Path) -> Pack:
    """Read and validate a pack.

    Raises ConfigError naming file, line, task, field, reason and remedy of the first problem."""
    reader = _Reader(path)
    problem = next(reader.problems(), None)
    if problem is not None:
        raise ConfigError(f"{problem}\n`synth-engine pack check {path}` lists everything that is wrong with the pack")
    return reader.pack()


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedPack:
    """A pack, read for all that is to be said of it."""

    problems: Sequence[Problem]
    """Everything that is wrong with it: no run takes it."""
    flaws: Sequence[Problem]
    """What its sound tasks reward or refuse other than is meant (engine.packs.flaws): a run takes it as it is."""
    pack: Pack | None
    """None with problems."""


def check_pack(path: Path) -> CheckedPack:
    """Read a pack, and look into every task."""
    reader = _Reader(path)
    problems = list(reader.problems())
    return CheckedPack(problems=problems, flaws=list(reader.flaws()), pack=None if problems else reader.pack())


class _Reader:
    """Reads a pack line by line, yielding problems and collecting the tasks that are sound."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header: PackHeader | None = None
        self.tasks: list[Task] = []
        self.sha256 = ""
        self._lines: dict[str, int] = {}

    def problems(self) -> Iterator[Problem]:
        """Everything that is wrong, in the order of the lines."""
        try:
            content = _content(self.path)
        except OSError as error:
            yield self._problem(0, "", "", f"cannot be read: {error.strerror}", "check the path")
            return
        except ValueError as error:
            yield self._problem(0, "", "", str(error), "write the pack again")
            return
        self.sha256 = hashlib.sha256(content).hexdigest()
        lines = ((number, line) for number, line in enumerate(io.BytesIO(content), 1) if line.strip())
        yield from self._header(*next(lines, (1, b"")))
        if self.header is None:
            return
        empty = True
        for number, line in lines:
            empty = False
            yield from self.task(number, line)
        if empty:
            yield self._problem(1, "", "", "the pack has no tasks", "add one task a line after the header")

    def _header(self, number: int, line: bytes) -> Iterator[Problem]:
        remedy = f'the first line is a header such as {{"format": {PACK_FORMAT}, "pack": "NAME"}}'
        try:
            value = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            yield self._problem(number, "", "header", f"not JSON: {error}", remedy)
            return
        known = value.get("format") if isinstance(value, Mapping) else None
        if isinstance(known, int) and known != PACK_FORMAT:
            newer = f"this version reads format {PACK_FORMAT}; upgrade synth-engine, or write the pack again"
            yield self._problem(number, "", "header.format", f"unknown pack format {known}", newer)
            return
        try:
            self.header = _HEADERS.validate_python([value])[0]
        except pydantic.ValidationError as error:
            yield from (self._problem(number, "", f"header.{where}", why, remedy) for where, why in _located(error))

    def task(self, number: int, line: bytes) -> Iterator[Problem]:
        """What is wrong with one task line."""
        try:
            value = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            yield self._problem(number, "", "", f"not JSON: {error}", "one JSON object a line")
            return
        given = value.get("id", "") if isinstance(value, Mapping) else ""
        name = str(given) if isinstance(given, str | int | float) else ""
        nested = [self._problem(number, name, *found) for found in nesting_problems(value)]
        if nested:
            yield from nested
            return
        try:
            task = _TASKS.validate_python([_unnested(value)])[0]
        except pydantic.ValidationError as error:
            remedy = "`synth-engine pack schema` has the fields, docs/packs.md#fields explains them"
            yield from (self._problem(number, name, where, why, remedy) for where, why in _located(error))
            return
        task = replace(task, world=replace(task.world, state=frozen(task.world.state)))
        first = self._lines.setdefault(task.id, number)
        found = [*task_problems(task)]
        if first != number:
            found.insert(0, Found("id", f"already used in line {first}", "ids are unique within a pack"))
        yield from (self._problem(number, name, *problem) for problem in found)
        if not found:
            self.tasks.append(task)

    def flaws(self) -> Iterator[Problem]:
        """The flaws of the tasks that were read."""
        for task in self.tasks:
            for found in task_flaws(task):
                yield self._problem(self._lines[task.id], task.id, *found)

    def pack(self) -> Pack:
        """What was read, where nothing was wrong."""
        assert self.header is not None
        return Pack(header=self.header, tasks=tuple(self.tasks), sha256=self.sha256)

    def _problem(self, line: int, task: str, field: str, reason: str, remedy: str) -> Problem:
        return Problem(path=str(self.path), line=line, task=task, field=field, reason=reason, remedy=remedy)


def _content(path: Path) -> bytes:
    """The uncompressed bytes of a pack, bounded."""
    if path.suffix != ".zst":
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"larger than {MAX_BYTES >> 20} MiB")
        return path.read_bytes()
    parts, size = [], 0
    with path.open("rb") as file:
        try:
            for part in _decompressed(file):
                parts.append(part)
                size += len(part)
                if size > MAX_BYTES:
                    raise ValueError(f"decompresses to more than {MAX_BYTES >> 20} MiB")
        except zstandard.ZstdError as error:
            raise ValueError(f"not a zstd file: {error}") from error
    return b"".join(parts)


def _decompressed(file: BinaryIO) -> Iterator[bytes]:
    """What the zstd frames of a file hold, one after the other; zstandard's own reader does not see that one is cut."""
    made = zstandard.ZstdDecompressor(max_window_size=1 << 27)
    frame = made.decompressobj()
    while chunk := file.read(_CHUNK):
        while chunk:
            if frame.eof:
                frame = made.decompressobj()
            yield frame.decompress(chunk)
            chunk = frame.unused_data
    if not frame.eof:
        raise ValueError("the zstd file ends early")


def _located(error: pydantic.ValidationError) -> Iterator[tuple[str, str]]:
    """(field, reason) of every pydantic error; the leading list index is ours."""
    for item in error.errors(include_url=False, include_input=False, include_context=False):
        where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in item["loc"][1:])
        yield where.removeprefix("."), item["msg"]


def _unnested(value: Json) -> Json:
    """Tools as engine.task has them: the OpenAI function object flattened."""
    if not isinstance(value, Mapping) or not isinstance(value.get("tools"), list):
        return value
    return {**value, "tools": [_unnested_tool(tool) for tool in value["tools"]]}


def _unnested_tool(tool: Json) -> Json:
    """A tool of any other shape is left as it is, and a misplaced member gets the name of its place: both are then
    reported as unknown or missing fields."""
    if not isinstance(tool, Mapping) or tool.get("type") != "function" or not isinstance(tool.get("function"), Mapping):
        return tool
    inner = {name if name in FUNCTION else f"function.{name}": value for name, value in tool["function"].items()}
    outer = {name: value for name, value in tool.items() if name not in ("type", "function")}
    flat = inner | {name if name not in FUNCTION else f"{name} beside function": value for name, value in outer.items()}
    return {name: _shared(compact(inner)) if name in _SCHEMAS else inner for name, inner in flat.items()}


@lru_cache(maxsize=4096)
def _shared(encoded: str) -> Json:
    """One object for equal schemas: the tools of a procedural pack repeat a few of them thousands of times."""
    return orjson.loads(encoded)


def parse_task(value: Json) -> Task:
    """One task from its JSON object, as a line of a pack holds it.

    Raises ConfigError naming task, field, reason and remedy."""
    reader = _Reader(Path("task"))
    for problem in reader.task(0, orjson.dumps(value)):
        raise ConfigError(str(problem))
    return reader.tasks[0]


# --- writing --------------------------------------------------------------------------------------------------------


def write_pack(path: Path, header: PackHeader, tasks: Iterable[Task]) -> None:
    """Write a pack whole or not at all; zstd where the name ends in ``.zst``. Equal tasks give equal bytes."""
    first = {"format": header.format, "pack": header.pack, "description": header.description, "license": header.license}
    content = b"".join(orjson.dumps(value) + b"\n" for value in (first, *map(task_json, tasks)))
    if path.suffix == ".zst":
        content = zstandard.ZstdCompressor(level=19, write_checksum=True).compress(content)
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    staged.write_bytes(content)
    staged.replace(path)


def task_json(task: Task) -> dict[str, Any]:
    """The JSON object of a task, as a pack holds it."""
    user, rubric = task.user, task.rubric
    return {
        "id": task.id,
        "persona": task.persona,
        "instruction": task.instruction,
        "rules": task.rules,
        "tools": [tool_json(tool) for tool in task.tools],
        "workflow": list(task.workflow),
        "user": None
        if user is None
        else {
            "context": user.context,
            "facts": {n: {"value": f.value, "keywords": list(f.keywords)} for n, f in user.facts.items()},
            "style": user.style,
            "escape_strategy": user.escape_strategy,
        },
        "world": {"state": task.world.state, "responses": [_response_json(seeded) for seeded in task.world.responses]},
        "rubric": {
            "forbidden": [_item_json(item) for item in rubric.forbidden],
            "subgoals": [_item_json(item) for item in rubric.subgoals],
            "interactions": [_item_json(item) for item in rubric.interactions],
        },
        "answer": task.answer,
        "kind": task.kind,
        "split": task.split.value,
        "meta": task.meta,
    }


def tool_json(tool: Tool) -> dict[str, Any]:
    """The JSON object of a tool, as a task of a pack holds it."""
    optional = {"outputs": tool.outputs, "effect": tool.effect}
    return tool.function | {name: value for name, value in optional.items() if value is not None}


def _response_json(seeded: SeededResponse) -> dict[str, Any]:
    made = {"tool": seeded.tool, "arguments": seeded.arguments, "answer": seeded.answer, "ok": seeded.ok}
    return made | {"after": list(seeded.after)}


def _item_json(item: RubricItem) -> dict[str, Any]:
    return {"id": item.id, "text": item.text} | ({} if item.check is None else {"check": item.check})
