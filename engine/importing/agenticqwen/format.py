"""The import format: what a file is, its fields, and what becomes of them."""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from engine.importing.agenticqwen.build import build_task
from engine.importing.agenticqwen.source import source_task
from engine.importing.format import ImportedTask, ImportFormat, ImportOptions, UnreadableError
from engine.packs.problems import Found
from engine.types import Json

_REMEDY = "give the JSON array of tasks as it was published"


def _tasks(content: bytes) -> Sequence[Json]:
    try:
        value: Json = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise UnreadableError([Found("", f"not JSON: {error}", _REMEDY)]) from error
    if not isinstance(value, list) or not value:
        reason = "is no array of tasks" if not isinstance(value, list) else "has no tasks"
        raise UnreadableError([Found("", reason, _REMEDY)])
    return value


def _build(value: Json, options: ImportOptions) -> ImportedTask:
    return build_task(source_task(value), options)


AGENTICQWEN = ImportFormat(
    title="AgenticQwen",
    file="a JSON array of tasks",
    rules="Policies become rules, the user's trick an escape strategy, expected calls fixed answers and executable "
    "subgoals, the hack path fixed answers and forbidden calls, transfer to a human a tool. Every tool is a read or "
    "{write: true}, by the verb of its name.",
    fields=(
        "id",
        "prompt policy",
        "prompt requirements",
        "prompt tools",
        "prompt request",
        "task_background",
        "rubrics",
        "test_policy",
        "user_escape_strategy",
        "normal_path",
        "hack_path",
    ),
    read=_tasks,
    build=_build,
)
