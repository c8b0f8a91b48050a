"""What an import kept of its source and what it could not represent, per field and task."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Note:
    """What became of one thing in one field of one task."""

    field: str
    """Of the source, dotted."""
    became: str
    """Where it went, or why it could not."""
    kept: bool = True
    count: int = 1
    """How often, in this task; 0 is no note."""


@dataclass(frozen=True, slots=True)
class ReportLine:
    """One row of a report."""

    field: str
    became: str
    kept: bool
    count: int
    """Things of that kind, over all tasks."""
    tasks: tuple[str, ...]
    """Ids of the tasks that have one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The rows of an import, fields in the order of ``fields``, what was kept first."""

    tasks: int
    lines: tuple[ReportLine, ...]

    def json(self) -> dict[str, Any]:
        """The report with all task ids."""
        return {"tasks": self.tasks, "lines": [asdict(line) for line in self.lines]}


def report(notes: Mapping[str, Iterable[Note]], fields: tuple[str, ...]) -> Report:
    """Add up the notes of tasks (id -> notes).

    Raises ValueError for a note about a field that ``fields`` does not have."""
    counts: dict[tuple[int, bool, str], int] = {}
    tasks: dict[tuple[int, bool, str], dict[str, None]] = {}
    for task, several in notes.items():
        for note in several:
            if not note.count:
                continue
            key = (fields.index(note.field), not note.kept, note.became)
            counts[key] = counts.get(key, 0) + note.count
            tasks.setdefault(key, {})[task] = None
    return Report(tasks=len(notes), lines=tuple(_lines(counts, tasks, fields)))


def _lines(
    counts: Mapping[tuple[int, bool, str], int],
    tasks: Mapping[tuple[int, bool, str], Iterable[str]],
    fields: tuple[str, ...],
) -> Iterator[ReportLine]:
    for key in sorted(counts, key=lambda key: (key[0], key[1], -counts[key], key[2])):
        field, lost, became = key
        yield ReportLine(fields[field], became, not lost, counts[key], tuple(tasks[key]))
