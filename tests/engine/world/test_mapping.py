"""The state-aware mapping: stable answers, single flight, seeded responses, entries that outlive the process."""

import sqlite3
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import ToolError
from engine.task import Task
from engine.types import Observation, ToolCall
from engine.world import mapping as mapping_module
from engine.world.admission import content
from engine.world.mapped import MappedWorld
from engine.world.mapping import Equivalent, ToolSimulator
from engine.world.offline import OfflineSimulator, OfflineWorld
from engine.world.states import Key, WorldState
from engine.world.store import open_store
from engine.world.tools import apply
from tests.parts.worlds import ORDER, call, counted_writes, shop

LIST = call("list_orders")
RUSH = call("rush_order", item="apple")
HOURS = call("shop_hours", day="Monday")
CALLS = [
    ORDER,
    LIST,
    RUSH,
    call("get_order", id="old"),
    call("get_order", id="new"),
    call("place_order", item="apple", quantity=6),
    call("place_order", item="pear", quantity=5),
    call("shop_hours", day="Monday"),
    call("get_order"),
]


class CountingSimulator:
    """The offline simulator, counting what it is asked; the first calls may be slow or fail."""

    def __init__(self, *, wait: anyio.Event | None = None, failures: int = 0) -> None:
        self.asked: Counter[str] = Counter()
        self.wait = wait
        self.failures = failures

    async def simulate(self, state: WorldState, call: ToolCall, known: Mapping[str, Any]) -> Observation:
        """Answer like the offline simulator, once it may."""
        self.asked[call.name] += 1
        if self.wait is not None:
            await self.wait.wait()
        if self.failures:
            self.failures -= 1
            raise ToolError("simulator down")
        return await OfflineSimulator().simulate(state, call, known)


class NoSimulator:
    """Fails the test when it is asked."""

    async def simulate(self, state: WorldState, call: ToolCall, known: Mapping[str, Any]) -> Observation:
        """Nothing may be simulated."""
        raise AssertionError(f"{call} was simulated again")


async def play(world: MappedWorld, task: Task, calls: list[ToolCall]) -> tuple[list[Observation], Any]:
    """One episode: the observations and the final state."""
    session = await world.open(task, 0)
    observations = [await session.call(made) for made in calls]
    return observations, await session.close()


# --- state awareness ------------------------------------------------------------------------------------------------


async def test_a_read_sees_the_writes_of_its_own_episode_only() -> None:
    """After a write a read sees it; before it, and in a sibling without the write, it does not."""
    world, task = OfflineWorld(), shop()
    writer, sibling = await world.open(task, 0), await world.open(task, 1)
    before = await writer.call(LIST)
    assert (await writer.call(ORDER)).ok
    after = await writer.call(LIST)
    assert '"quantity":5' in after.content
    assert "new" not in before.content
    assert await sibling.call(LIST) == before
    assert "new" in (await writer.close())["orders"]
    assert await sibling.close() == task.world.state


async def test_episodes_with_the_same_writes_share_answers() -> None:
    """The second episode is answered from memory, call by call, its own state written too."""
    simulator, task = CountingSimulator(), shop()
    world = MappedWorld(simulator)
    first = await play(world, task, [HOURS, RUSH, HOURS])
    asked = simulator.asked.copy()
    assert await play(world, task, [HOURS, RUSH, HOURS]) == first
    assert simulator.asked == asked == {"shop_hours": 2, "rush_order": 1}
    assert world.mapping.counts == (3, 0, 0, 3)


async def test_a_failed_write_moves_nothing() -> None:
    """An in-world error leaves the state as it was, and no simulator is asked for it."""
    world, task = MappedWorld(NoSimulator()), shop()
    observations, state = await play(world, task, [call("place_order", item="pear", quantity=5)])
    assert observations == [Observation(content='{"error":"not possible"}', ok=False)]
    assert state == task.world.state


GONE = call("place_order", item="pear", quantity=5)
FIXED = [{"tool": "rush_order", "arguments": {"item": "pear"}, "answer": {"error": "none left"}, "ok": False}]


@pytest.mark.parametrize(
    ("made", "times"),
    [(ORDER, 1), (GONE, 1), (RUSH, 1), (call("rush_order", item="pear"), 0), (LIST, 0), (HOURS, 0)],
    ids=["declared", "not possible", "open", "fixed refusal", "read", "drawn"],
)
async def test_a_write_is_applied_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, made: ToolCall, times: int
) -> None:
    """Once when its answer is made, whether the state allows it or not; never for one that is known already; once more
    in another process, for the state that it leads to."""
    task, written = shop(world={"state": shop().world.state, "responses": FIXED}), counted_writes(monkeypatch)
    async with open_store(tmp_path / "world.sqlite") as store:
        world = OfflineWorld(store)
        first = await play(world, task, [made])
        assert written == [made.name] * times
        assert await play(world, task, [made]) == first
        async with anyio.create_task_group() as tg:
            for _ in range(5):
                tg.start_soon(play, world, task, [made])
        assert written == [made.name] * times
        written.clear()
        again = MappedWorld(NoSimulator(), store)
        assert await play(again, task, [made]) == first
        assert await play(again, task, [made]) == first
        moved = first[0][0].ok and times
        assert written == [made.name] * moved


@settings(max_examples=15)
@given(st.lists(st.lists(st.sampled_from(CALLS), max_size=8), min_size=1, max_size=6))
def test_the_mapping_says_what_the_world_says(episodes: list[list[ToolCall]]) -> None:
    """For any episodes, answers and final states equal the pure simulator's; a restart repeats them byte for byte."""
    task = shop()
    expected = []
    for calls in episodes:
        state, answers = task.world.state, []
        for made in calls:
            answer, ok, state = apply(task, state, made)
            answers.append(Observation(content=content(answer), ok=ok))
        expected.append((answers, state))

    async def played(path: Path, simulator: ToolSimulator) -> list[Any]:
        async with open_store(path) as store:
            world = MappedWorld(simulator, store)
            return [await play(world, task, calls) for calls in episodes]

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "world.sqlite"
        assert anyio.run(played, path, OfflineSimulator()) == expected
        assert anyio.run(played, path, NoSimulator()) == expected


# --- single flight --------------------------------------------------------------------------------------------------


async def test_identical_concurrent_calls_share_one_simulation() -> None:
    """16 episodes with 10 spellings each of one call: one simulation, one answer."""
    wait = anyio.Event()
    simulator, task = CountingSimulator(wait=wait), shop()
    world = MappedWorld(simulator)
    answers: list[Observation] = []

    async def episode(seed: int) -> None:
        session = await world.open(task, seed)
        answers.append(await session.call(call("shop_hours", day="Monday" + " " * (seed % 10))))
        await session.close()

    async with anyio.create_task_group() as tg:
        for seed in range(160):
            tg.start_soon(episode, seed)
        await anyio.wait_all_tasks_blocked()
        wait.set()
    assert simulator.asked == {"shop_hours": 1}
    assert len(answers) == 160
    assert len(set(answers)) == 1


async def test_a_cancelled_leader_does_not_take_the_others_along() -> None:
    """The call that leads a flight is cancelled: the next one simulates, everyone else gets its answer."""
    wait = anyio.Event()
    simulator, task = CountingSimulator(wait=wait), shop()
    world = MappedWorld(simulator)
    answers: list[Observation] = []
    leader = anyio.CancelScope()

    async def lead() -> None:
        session = await world.open(task, 0)
        with leader:
            await session.call(HOURS)
        await session.close()

    async def follow() -> None:
        session = await world.open(task, 1)
        answers.append(await session.call(HOURS))
        await session.close()

    async with anyio.create_task_group() as tg:
        tg.start_soon(lead)
        await anyio.wait_all_tasks_blocked()
        for _ in range(5):
            tg.start_soon(follow)
        await anyio.wait_all_tasks_blocked()
        assert simulator.asked == {"shop_hours": 1}
        leader.cancel()
        await anyio.wait_all_tasks_blocked()
        assert simulator.asked == {"shop_hours": 2}
        wait.set()
    assert leader.cancelled_caught
    assert len(answers) == 5
    assert len(set(answers)) == 1


async def test_a_failed_simulation_fails_who_waited_and_is_tried_again() -> None:
    """Everyone in the flight gets the failure; the next call asks again; nothing is kept of the failure."""
    wait = anyio.Event()
    simulator, task = CountingSimulator(wait=wait, failures=1), shop()
    world = MappedWorld(simulator)
    failed: list[str] = []

    async def episode() -> None:
        session = await world.open(task, 0)
        try:
            await session.call(HOURS)
        except ToolError as error:
            failed.append(str(error))
        await session.close()

    async with anyio.create_task_group() as tg:
        for _ in range(3):
            tg.start_soon(episode)
        await anyio.wait_all_tasks_blocked()
        wait.set()
    assert failed == ["simulator down"] * 3
    assert (await play(world, task, [HOURS]))[0][0].ok
    assert simulator.asked == {"shop_hours": 2}


# --- seeded responses -----------------------------------------------------------------------------------------------


def seeded(
    tool: str, answer: Any, *, ok: bool = True, after: list[Any] | None = None, **arguments: Any
) -> dict[str, Any]:
    """A response as a pack holds it."""
    return {"tool": tool, "arguments": arguments, "answer": answer, "ok": ok, "after": after or []}


async def test_seeded_responses_come_before_the_simulator() -> None:
    """A fixed answer wins, in any spelling of the call; the pickiest `after` that is done wins; writes still write."""
    order = {"tool": "place_order", "arguments": {"item": "apple", "quantity": 5.0}}
    responses = [
        seeded("shop_hours", {"open": False}, day="Monday "),
        seeded("shop_hours", {"open": True}, day="Monday", after=[order]),
        seeded("place_order", {"code": "11"}, item="apple", quantity=5),
        seeded("rush_order", {"eta": "1 h"}, item="apple"),
    ]
    task = shop(world={"state": shop().world.state, "responses": responses})
    monday = call("shop_hours", day=" Monday")
    observations, state = await play(MappedWorld(NoSimulator()), task, [monday, RUSH, monday, ORDER, monday])
    said = [observation.content for observation in observations]
    assert said == ['{"open":false}', '{"eta":"1 h"}', '{"open":false}', '{"code":"11"}', '{"open":true}']
    assert state["orders"]["new"]["quantity"] == 5


async def test_a_seeded_refusal_changes_nothing() -> None:
    """`ok: false` is an error that the task wants; a seeded success cannot do what the state does not allow."""
    responses = [
        seeded("place_order", {"error": "sold out"}, ok=False, item="apple", quantity=5),
        seeded("place_order", {"code": "11"}, item="pear", quantity=5),
    ]
    task = shop(world={"state": shop().world.state, "responses": responses})
    calls = [ORDER, call("place_order", item="pear", quantity=5)]
    observations, state = await play(MappedWorld(NoSimulator()), task, calls)
    assert [observation.content for observation in observations] == ['{"error":"sold out"}', '{"error":"not possible"}']
    assert not any(observation.ok for observation in observations)
    assert state == task.world.state


# --- equivalent calls -----------------------------------------------------------------------------------------------


MONDAY = Key("shop_hours", b'{"day":"Monday"}')


class PointingSimulator:
    """Says that every opening hour is Monday's."""

    async def simulate(self, state: WorldState, call: ToolCall, known: Mapping[str, Any]) -> Observation | Equivalent:
        """Point at Monday's entry, or make it."""
        if call.name != "shop_hours":
            return await OfflineSimulator().simulate(state, call, known)
        if call.arguments.get("day") == "Monday":
            return Observation(content='{"opens":9}', ok=True)
        return Equivalent(MONDAY, state.entries[MONDAY].observation)


async def test_an_equivalent_call_gets_the_answer_of_its_entry(tmp_path: Path) -> None:
    """The simulator points at an entry of the same state: same answer, and the database says which entry."""
    path, task = tmp_path / "world.sqlite", shop()
    async with open_store(path) as store:
        world = MappedWorld(PointingSimulator(), store)
        observations, _ = await play(world, task, [call("shop_hours", day=day) for day in ("Monday", "mon")])
        assert observations[0] == observations[1]
        assert world.mapping.counts == (0, 0, 1, 1)
    rows = await anyio.to_thread.run_sync(lambda: _rows(path, "SELECT source, same_as FROM entries ORDER BY source"))
    assert rows == [("equivalent", '["shop_hours","{\\"day\\":\\"Monday\\"}"]'), ("simulated", None)]
    async with open_store(path) as store:
        again = await play(MappedWorld(NoSimulator(), store), task, [call("shop_hours", day="mon")])
        assert again[0] == observations[:1]


# --- memory ---------------------------------------------------------------------------------------------------------


async def test_idle_worlds_leave_the_memory_and_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a store, a task that nobody plays is dropped and loaded again, its uncommitted answers included."""
    monkeypatch.setattr(mapping_module, "_IDLE_TASKS", 1)
    simulator = CountingSimulator()
    tasks = [shop(id=f"shop-{index}") for index in range(3)]
    async with open_store(tmp_path / "world.sqlite") as store:
        world = MappedWorld(simulator, store)
        first = [await play(world, task, [HOURS, RUSH]) for task in tasks]
        assert "1 tasks, 1 idle" in repr(world.mapping)
        assert [await play(world, task, [HOURS, RUSH]) for task in tasks] == first
    assert simulator.asked == {"shop_hours": 3, "rush_order": 3}


async def test_many_answers_commit_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pending entries are bounded: a call that makes too many waits for a commit."""
    monkeypatch.setattr(mapping_module, "_PENDING_ROWS", 4)
    async with open_store(tmp_path / "world.sqlite") as store:
        await play(OfflineWorld(store), shop(), [call("shop_hours", day=str(day)) for day in range(6)])
        assert store.pending == 2


def _rows(path: Path, query: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()
