"""Flaws of a task that has no problems: a run plays it, but what it rewards is not what is meant.

Each is decided from the task alone, without playing it; `synth-engine pack check` lists them.
"""

from __future__ import annotations

from collections.abc import Iterator

from engine.packs.check_flaws import check_flaws
from engine.packs.fact_flaws import fact_flaws
from engine.packs.problems import Found
from engine.packs.reach import Reach
from engine.packs.tool_flaws import tool_flaws
from engine.task import Task


def task_flaws(task: Task) -> Iterator[Found]:
    """Every flaw of a task without problems."""
    reach = Reach(task)
    yield from tool_flaws(task, reach)
    yield from fact_flaws(task)
    yield from check_flaws(task, reach)
