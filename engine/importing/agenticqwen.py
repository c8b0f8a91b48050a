"""Import of the AgenticQwen task format: a JSON array of tasks -> tasks of a pack, and a report per field.

All or nothing, as `pack check`: with one broken task nothing is imported, and everything that is wrong is listed. The
mapping, field by field, is in docs/agenticqwen.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson

from engine.errors import ConfigError
from engine.importing.build import FIELDS, Built, Options, build
from engine.importing.report import Report, report
from engine.importing.source import UnreadableError, source
from engine.packs.pack import MAX_BYTES, task_json
from engine.packs.problems import Found, Problem, nesting_problems, task_problems
from engine.task import Task
from engine.types import Json


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """Tasks, in the order of the file, and what was and was not representable."""

    tasks: tuple[Task, ...]
    report: Report


class ImportRefusedError(ConfigError):
    """A file of which nothing was imported; ``problems`` has everything that is wrong with it."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


def load(path: Path, options: Options) -> Imported:
    """Import a file.

    Raises ImportRefusedError (a ConfigError) naming task, field, reason and remedy of everything that is wrong."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise _refused(path, f"larger than {MAX_BYTES >> 20} MiB", "import it in parts")
        content = path.read_bytes()
    except OSError as error:
        raise _refused(path, f"cannot be read: {error.strerror}", "check the path") from error
    try:
        value = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise _refused(path, f"not JSON: {error}", "give the JSON array of tasks as it was published") from error
    return imported(value, options, str(path))


def _refused(path: Path, reason: str, remedy: str) -> ImportRefusedError:
    return ImportRefusedError([Problem(path=str(path), line=0, task="", field="", reason=reason, remedy=remedy)])


def imported(value: Json, options: Options, path: str = "tasks") -> Imported:
    """Import the parsed JSON array of tasks; ``path`` is what errors call it.

    Raises ImportRefusedError naming task, field, reason and remedy of everything that is wrong."""
    if not isinstance(value, list) or not value:
        reason = "is no array of tasks" if not isinstance(value, list) else "has no tasks"
        raise _refused(Path(path), reason, "give the JSON array of tasks as it was published")
    problems: list[Problem] = []
    built: dict[str, Built] = {}
    for index, raw in enumerate(value):
        given = raw.get("id") if isinstance(raw, dict) else None
        name = given if isinstance(given, str) else f"[{index}]"
        found: list[Found] = []
        try:
            made = build(source(raw), options)
        except UnreadableError as error:
            found = error.found
        else:
            found = list(_problems(made.task, built))
            built.setdefault(made.task.id, made)
        problems += [Problem(path=path, line=0, task=name, **item._asdict()) for item in found]
    if problems:
        raise ImportRefusedError(problems)
    notes = {name: made.notes for name, made in built.items()}
    return Imported(tasks=tuple(made.task for made in built.values()), report=report(notes, FIELDS))


def _problems(task: Task, known: dict[str, Built]) -> Iterator[Found]:
    """What is wrong with the task that came out, which is what is wrong with the one that went in."""
    if task.id in known:
        yield Found("id", "already used by an earlier task", "ids are unique within a file")
    yield from nesting_problems(task_json(task))
    yield from task_problems(task)
