"""engine.packs.flaws: tasks that are sound have none."""

import itertools
from collections.abc import Sequence

from engine.packs.flaws import task_flaws
from engine.packs.pack import load_pack
from engine.synthesis.errands import ERRANDS_SEED, make_errand
from engine.synthesis.tiny_family import TINY_SEED, make_tiny_task
from engine.task import Split, Task
from tests.parts.agenticqwen_plays import DECIDED, IMPORTED
from tests.parts.flawed_shop import flaws
from tests.parts.places import ASSETS, ROOT


def test_the_shop_has_none():
    """All of the edits below begin there."""
    assert flaws() == []


def shipped() -> Sequence[Task]:
    """All tasks of showcase and of the example pack, fifty each of the families, from all of their splits."""
    made = [make_tiny_task(TINY_SEED, *draw) for draw in itertools.product(Split, range(17))]
    made += [make_errand(ERRANDS_SEED, *draw) for draw in itertools.product(Split, range(17))]
    hand_written = (ASSETS / "packs/showcase.jsonl", ROOT / "docs/examples/library.jsonl")
    return [*made, *(task for path in hand_written for task in load_pack(path).tasks)]


def test_shipped_and_imported_tasks_have_none():
    """Whoever checks a pack of ours is told nothing, and so not the wrong thing."""
    tasks = [*shipped(), *IMPORTED.tasks, *DECIDED.tasks]
    assert len(tasks) > 140
    assert {task.id: [str(found) for found in task_flaws(task)] for task in tasks if list(task_flaws(task))} == {}
