"""Import of a file in another project's format: tasks of a pack, and a report per field.

All or nothing, as `pack check`: with one broken task nothing is imported, and everything that is wrong is listed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from engine.errors import ConfigError
from engine.importing.format import ImportedTask, ImportFormat, ImportOptions, UnreadableError
from engine.importing.report import Report, report
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


def import_file(of: ImportFormat, path: Path, options: ImportOptions) -> Imported:
    """Import a file.

    Raises ImportRefusedError (a ConfigError) naming task, field, reason and remedy of everything that is wrong."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise _refused(path, Found("", f"larger than {MAX_BYTES >> 20} MiB", "import it in parts"))
        content = path.read_bytes()
    except OSError as error:
        raise _refused(path, Found("", f"cannot be read: {error.strerror}", "check the path")) from error
    return import_tasks(of, content, options, path)


def import_tasks(of: ImportFormat, content: bytes, options: ImportOptions, path: Path = Path("tasks")) -> Imported:
    """Import the content of a file; ``path`` is what errors call it.

    Raises ImportRefusedError naming task, field, reason and remedy of everything that is wrong."""
    try:
        tasks = of.read(content)
    except UnreadableError as error:
        raise _refused(path, *error.found) from error
    problems: list[Problem] = []
    built: dict[str, ImportedTask] = {}
    for index, raw in enumerate(tasks):
        found: list[Found] = []
        try:
            made = of.build(raw, options)
        except UnreadableError as error:
            found = error.found
        else:
            found = list(_problems(made.task, built))
            built.setdefault(made.task.id, made)
        problems += [_problem(path, item, _name(raw, index)) for item in found]
    if problems:
        raise ImportRefusedError(problems)
    notes = {name: made.notes for name, made in built.items()}
    return Imported(tasks=tuple(made.task for made in built.values()), report=report(notes, of.fields))


def _name(raw: Json, index: int) -> str:
    """What errors call a task: its id, or its place in the file."""
    given = raw.get("id") if isinstance(raw, dict) else None
    return given if isinstance(given, str) else f"[{index}]"


def _refused(path: Path, *found: Found) -> ImportRefusedError:
    return ImportRefusedError([_problem(path, item) for item in found])


def _problem(path: Path, found: Found, task: str = "") -> Problem:
    return Problem(path=str(path), line=0, task=task, **found._asdict())


def _problems(task: Task, known: dict[str, ImportedTask]) -> Iterator[Found]:
    """What is wrong with the task that came out, which is what is wrong with the one that went in."""
    if task.id in known:
        yield Found("id", "already used by an earlier task", "ids are unique within a file")
    yield from nesting_problems(task_json(task))
    yield from task_problems(task)
