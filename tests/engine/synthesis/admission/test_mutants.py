"""Whatever somebody writes into a task that loads: admission says what it thinks of it, and never fails itself."""

import random
from typing import Any

import pytest

from engine.errors import ConfigError
from engine.packs.pack import parse_task
from engine.synthesis.admission.admit import admission_of
from tests.parts.admission_tasks import breakfast

MUTANTS = 40
VALUES = (None, True, 0, -1, 2.5, "", "x", "{day}", [], {}, [1], {"a": "b"}, "<answer>x</answer>", "<tool_call>{")


def mutated(rng: random.Random) -> dict[str, Any]:
    """The breakfast with one to three members or elements replaced, doubled or gone."""
    task = breakfast()
    for _ in range(rng.randint(1, 3)):
        holder, key = rng.choice([(holder, key) for holder, key in _places(task) if holder is not task])
        change = rng.random()
        if change < 0.3:
            del holder[key]
        elif change < 0.8 or isinstance(holder, dict):
            holder[key] = rng.choice(VALUES)
        else:
            holder.insert(key, holder[key])
    return task


def _places(value: Any) -> list[tuple[Any, Any]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, held in inner for place in ((value, key), *_places(held))]


@pytest.mark.parametrize("part", range(4))
async def test_no_task_that_loads_is_too_much(part: int):
    """One of them at least."""
    rng, played = random.Random(part), 0
    for _ in range(MUTANTS // 4):
        value = mutated(rng)
        try:
            task = parse_task(value)
        except ConfigError:
            continue
        played += 1
        assert (await admission_of(task, 2)).task_id == task.id
    assert played
