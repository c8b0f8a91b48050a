"""Admission, live slots and the scheduler that combines them."""

import random
from collections import Counter
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.scheduler import Admission, LiveSlots, Scheduler
from engine.run.rollout import task_index


def test_every_epoch_plays_every_task_once_in_another_order() -> None:
    """The sampler is a permutation per epoch, fixed by the seed."""
    first = [task_index(position, 50, seed=3) for position in range(50)]
    second = [task_index(position, 50, seed=3) for position in range(50, 100)]
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    assert first == [task_index(position, 50, seed=3) for position in range(50)]


def test_the_budget_is_freed_by_trained_and_dropped_groups_only() -> None:
    """Writing a group to the stream frees nothing."""
    admission = Admission(budget=2, written=set())
    assert [admission.admit(), admission.admit(), admission.admit()] == [0, 1, None]
    admission.finished(0)
    assert admission.admit() is None
    admission.freed(trained=1, dropped=0)
    assert admission.admit() == 2
    admission.freed(trained=0, dropped=0)
    assert admission.outstanding == 2


def test_resume_admits_exactly_the_positions_that_the_stream_lacks() -> None:
    """A group in flight at a kill is admitted again; a written one never."""
    admission = Admission(budget=10, written={0, 2, 3})
    assert [admission.admit() for _ in range(3)] == [1, 4, 5]


@given(st.data())
def test_admitted_minus_trained_minus_dropped_never_exceeds_the_budget(data: st.DataObject) -> None:
    """The staleness bound holds for any order of events, and no position is admitted twice."""
    budget = data.draw(st.integers(1, 8))
    admission = Admission(budget=budget, written=set())
    seen: set[int] = set()
    trained = dropped = 0
    for action in data.draw(st.lists(st.sampled_from("afftd"), max_size=100)):
        if action == "a" and (position := admission.admit()) is not None:
            assert position not in seen
            seen.add(position)
        elif action == "f" and admission.in_flight:
            admission.finished(data.draw(st.sampled_from(sorted(admission.in_flight))))
        elif action in "td" and len(admission.written) > trained + dropped:
            trained, dropped = trained + (action == "t"), dropped + (action == "d")
            admission.freed(trained, dropped)
        assert admission.outstanding <= budget


def test_live_slots_grow_only_while_used_and_unqueued() -> None:
    """Growth stops first; a limit never shrinks, and a fixed one never moves."""
    slots = LiveSlots(limit=64, most=100)
    slots.adapt(10, room=True)
    assert slots.limit == 64
    slots.adapt(64, room=False)
    assert slots.limit == 64
    slots.adapt(64, room=True)
    assert slots.limit == 80
    for _ in range(9):
        slots.adapt(slots.limit, room=True)
    assert slots.limit == 100
    fixed = LiveSlots(limit=5, most=5)
    fixed.adapt(5, room=True)
    assert fixed.limit == 5


def scheduler(play: Any, emitted: list[int], *, budget: int = 4, slots: int = 6) -> Scheduler:
    """A scheduler of groups of three whose groups are freed as soon as they are emitted."""

    async def emit(position: int, episodes: list[Any]) -> None:
        assert [episode.id for episode in episodes] == [0, 1, 2]
        emitted.append(position)
        made.admission.freed(len(emitted), 0)

    made = Scheduler(
        admission=Admission(budget=budget, written=set()),
        slots=LiveSlots(limit=slots, most=slots),
        group_size=3,
        play=play,
        emit=emit,
        clock=anyio.current_time,
    )
    return made


async def test_groups_are_emitted_whole_and_once_and_live_slots_bound_the_episodes() -> None:
    """emit-once, and never more live episodes than slots."""
    order, emitted, most = random.Random(1), [], 0

    async def play(_: int, index: int) -> Any:
        nonlocal most
        most = max(most, made.live)
        await anyio.sleep(order.random() * 0.004)
        if len(emitted) > 20:
            made.draining = True
        return SimpleNamespace(id=index)

    made = scheduler(play, emitted)
    await made.run()
    assert most == 6
    assert set(Counter(emitted).values()) == {1}
    assert made.live == 0
    assert "0/6 live" in repr(made)


async def test_draining_finishes_what_was_admitted() -> None:
    """After `draining` nothing is admitted and every admitted group is emitted."""
    emitted: list[int] = []

    async def play(_: int, index: int) -> Any:
        made.draining = True
        await anyio.sleep(0.001)
        return SimpleNamespace(id=index)

    made = scheduler(play, emitted)
    await made.run()
    assert sorted(emitted) == [0, 1]


async def test_time_spent_waiting_for_the_learner_is_measured() -> None:
    """The gauge counts time with a full budget by the share of free slots: nothing is waited for where all are live."""
    now = [0.0]
    made = scheduler(None, [], budget=1, slots=9)
    made.clock = lambda: now[0]
    assert len(made.transition()) == 3
    now[0] += 0.06
    assert made.learner_wait_s == pytest.approx(0.06 * 6 / 9)
    made.live = made.slots.limit
    full = made.learner_wait_s
    now[0] += 0.02
    assert made.learner_wait_s == full
    made.live = 3
    made.admission.finished(0)
    made.admission.freed(1, 0)
    assert len(made.transition()) == 3


async def test_cancelling_stops_at_once() -> None:
    """A cancelled scheduler leaves no task behind and emits nothing half."""
    emitted: list[int] = []

    async def play(_: int, __: int) -> Any:
        await anyio.sleep(999)

    made = scheduler(play, emitted)
    with anyio.move_on_after(0.05) as scope:
        await made.run()
    assert scope.cancelled_caught
    assert emitted == []
    assert made.live == 0


def test_nothing_is_admitted_after_the_last_step() -> None:
    """Freed places of a finished run start nothing that would only be cancelled."""
    admission = Admission(budget=2, written=set())
    assert admission.admit() == 0
    admission.closed = True
    assert admission.admit() is None


async def test_an_error_in_the_loop_itself_reaches_the_owner() -> None:
    """What is not an episode's fault is not swallowed."""

    async def play(_: int, __: int) -> Any:
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup):
        await scheduler(play, []).run()
