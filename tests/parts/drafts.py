"""Drafts compiled as the factory does."""

from collections.abc import Sequence
from typing import Any

from engine.synthesis.drafts.compiler import compile_draft
from engine.synthesis.drafts.draft import Draft
from engine.task import Task
from tests.parts.agenticqwen_plays import rewarded


async def flips(task: Task, script: Sequence[str]) -> frozenset[str]:
    """The items whose verdict a script changes."""
    gold, other = await _verdicts(task, task.meta["gold"]), await _verdicts(task, script)
    return frozenset(id_ for id_, met in gold.items() if other[id_] != met)


async def _verdicts(task: Task, script: Sequence[str]) -> dict[str, bool]:
    return {item.id: item.met for item in (await rewarded(task, script)).items}


async def compiled(value: dict[str, Any]) -> Task:
    """The task of a draft that is given as JSON."""
    return await compile_draft(Draft.model_validate(value))
