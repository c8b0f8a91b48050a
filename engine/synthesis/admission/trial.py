"""What is wrong with a task as soon as it is played once, by its gold script and by nobody: for `pack check`."""

from __future__ import annotations

from collections.abc import AsyncIterator

from engine.packs.problems import Found
from engine.reward.rubric import open_items
from engine.synthesis.admission.play import ScriptPlayer
from engine.synthesis.planted import DONE
from engine.task import Task


async def trial(task: Task) -> AsyncIterator[Found]:
    """The problems of a sound task that shows them offline; none for one that takes a judge.

    Raises ConfigError where an episode of it cannot be recorded."""
    if open_items(task.rubric):
        return
    player = ScriptPlayer(task)
    nothing = await player.reward((DONE,))
    if nothing.value == 1:
        yield Found("rubric", 'doing nothing earns 1: "Done." meets every item', "let an item take what the task wants")
    gold = task.meta.get("gold")
    if gold is None:
        return
    if not isinstance(gold, list | tuple) or not all(isinstance(completion, str) for completion in gold):
        yield Found("meta.gold", "is no list of completions", "docs/packs.md#scripts has an example")
        return
    earned = await player.reward(gold)
    if earned.value < 1:
        lost = ", ".join(item.id for item in earned.items if item.met == (item.part == "forbidden"))
        reason = f"earns {earned.value:g} offline, not 1, for {lost}"
        yield Found("meta.gold", reason, "`synth-engine pack card` shows what happens in it")
