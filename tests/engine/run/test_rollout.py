"""engine.run.rollout: when a run in which nothing can be scored is given up."""

from dataclasses import replace
from types import SimpleNamespace

import anyio
import pytest

from engine.config.load import load
from engine.core.versions import Versions
from engine.errors import RunError
from engine.packs.pack import load_pack
from engine.run.counters import EngineCounters
from engine.run.rollout import Rollout
from engine.stream.reader import iter_groups
from engine.stream.writer import TrajectoryWriter
from engine.types import Outcome, Reward
from tests.parts.recorded_runs import small_pack
from tests.parts.stream_groups import HEADER, SETTINGS, group


class Sink:
    """A writer that keeps nothing."""

    async def write(self, group):
        return group


def rollout_of(task, writer, clock):
    """A rollout of one task."""

    async def nothing():
        pass

    return Rollout(
        config=load("dry").config,
        run_id="r",
        tasks=[task],
        seams=SimpleNamespace(clock=clock, live=None),
        versions=Versions(slots=2),
        writer=writer,
        flush=nothing,
        counters=EngineCounters(),
        written=set(),
    )


@pytest.fixture
def task(tmp_path):
    """A task of the tiny family."""
    return load_pack(small_pack(tmp_path / "small.jsonl")).tasks[0]


@pytest.fixture
def emitted(task):
    """Called with whether it is scored, it hands over one more episode; its `now_s` is the clock of the run."""

    def clock():
        return emit.now_s

    rollout = rollout_of(task, Sink(), clock)
    reward = Reward(value=0.0, F=1.0, N=0.0, I=0.0)

    async def emit(scored):
        position = emit.count
        emit.count += 1
        rollout._admitted_s[position] = 0.0
        made = SimpleNamespace(
            task_id=task.id,
            id=f"g{position:06d}.00",
            scored=scored,
            reward=reward if scored else None,
            turns=1,
            tokens=None,
            outcome=Outcome.TOOL_FAULT,
            error="no answer",
        )
        await rollout._emit(position, [made])

    emit.now_s, emit.count, emit.budget = 0.0, 0, rollout.config.group_budget
    return emit


async def test_a_run_that_never_scored_anything_is_given_up_at_once(emitted):
    """After a whole group budget, with what went wrong last."""
    for _ in range(emitted.budget - 1):
        await emitted(False)
    with pytest.raises(RunError, match=r"not one episode of the last 16 groups.*no answer"):
        await emitted(False)


async def test_an_outage_is_waited_out(emitted):
    """Five minutes, since the last group that had a reward."""
    await emitted(True)
    for second in range(3 * emitted.budget):
        emitted.now_s = float(second)
        await emitted(False)
    await emitted(True)
    emitted.now_s += 299
    for _ in range(emitted.budget):
        await emitted(False)
    emitted.now_s += 2
    with pytest.raises(RunError, match="could be scored"):
        await emitted(False)


def test_what_is_counted_is_what_was_written(task, tmp_path):
    """An episode that cannot be written is masked by the writer, and so it is in the counters."""
    writer = TrajectoryWriter(tmp_path / "stream", HEADER, SETTINGS)
    rollout = rollout_of(task, writer, clock=lambda: 0.0)
    rollout._admitted_s[0] = 0.0
    first, second, third = group(0).episodes

    async def emit():
        async with anyio.create_task_group() as tasks:
            await tasks.start(writer.run)
            await rollout._emit(0, [first, replace(second, final_state={1, 2}), third])
            await writer.close()

    anyio.run(emit)
    assert rollout.counters.masked == 2
    assert rollout.counters.outcomes == {first.outcome: 1, Outcome.INFRA_ERROR: 2}
    [written] = iter_groups(tmp_path / "stream")
    assert [episode.scored for episode in written.episodes] == [True, False, False]
    assert "is not JSON serializable: set" in written.episodes[1].error
