"""Whether somebody decides every rubric item of the tasks that are played: code by a check, or a judge."""

from __future__ import annotations

from collections.abc import Iterable

from engine.config.tree import Config
from engine.errors import ConfigError
from engine.reward.rubric import open_items
from engine.task import Task

_REMEDY = (
    "set scorer.judge=NAME, a language model of [endpoints.NAME] that decides them, give them checks, or import the "
    "tasks again with `synth-engine pack import ... --no-judge`, which leaves such items out"
)


def judged_items(tasks: Iterable[Task]) -> str:
    """Returns how many rubric items have no check, of how many tasks, and the first; empty where code decides all."""
    judged = [(task.id, items) for task in tasks if (items := open_items(task.rubric))]
    if not judged:
        return ""
    count = sum(len(items) for _, items in judged)
    task, (first, *_) = judged[0]
    return (
        f"{count} rubric item{'s have' if count > 1 else ' has'} no check, of {len(judged)} "
        f"task{'s' * (len(judged) > 1)} (the first: {first.item.id} of task {task})"
    )


def require_decided(config: Config, tasks: Iterable[Task]) -> None:
    """Raises ConfigError where items have no check and no judge is configured; a scorer of one's own needs none."""
    if config.scorer.kind != "rubric" or config.scorer.judge:
        return
    if judged := judged_items(tasks):
        raise ConfigError(f"tasks.pack: {judged}, and scorer.judge is empty: {_REMEDY}")
