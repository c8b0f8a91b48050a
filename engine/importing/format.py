"""What an import format is, and what becomes of one task of it.

To add a format, write a module with its ImportFormat and name it in engine.importing.formats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from engine.importing.report import Note
from engine.packs.problems import Found
from engine.task import Split, Task
from engine.types import Json


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions:
    """What the caller of an import decides."""

    split: Split = Split.TRAIN
    judge: bool = True
    """Whether rubric items that only a judge can decide are kept."""


class ImportedTask(NamedTuple):
    """A task and what became of its source."""

    task: Task
    notes: tuple[Note, ...]


class UnreadableError(Exception):
    """A file, or a task of it, that cannot be read; ``found`` has field, reason and remedy of all that is wrong."""

    def __init__(self, found: list[Found]) -> None:
        super().__init__("; ".join(map(str, found)))
        self.found = found


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportFormat:
    """A format in which another project publishes tasks."""

    title: str
    """Its name as its project writes it."""
    file: str
    """What a file is: `a JSON array of tasks`."""
    rules: str
    """What becomes of the fields, in a paragraph for `synth-engine pack import NAME --help`."""
    fields: tuple[str, ...]
    """Of a task, in the order in which a report lists them."""
    read: Callable[[bytes], Sequence[Json]]
    """Returns the tasks of a file's content; raises UnreadableError where it has none."""
    build: Callable[[Json, ImportOptions], ImportedTask]
    """Makes a task of ours of one of theirs, any JSON. Raises UnreadableError where it cannot be taken apart; what else
    is wrong with the task that comes out is found by the import (engine.packs.problems)."""
