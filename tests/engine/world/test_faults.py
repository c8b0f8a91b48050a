"""Fault injection at the tool boundary, its key of the configuration, and the lines that tell of it."""

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from engine.config.load import dump, load
from engine.errors import ConfigError, ToolError
from engine.reward.checks import comparable, evaluate_check
from engine.run.compose import open_world
from engine.run.models import SimulatorModels
from engine.rundir.layout import RunDir, read_lines
from engine.types import Event, EventKind, Observation, ToolCall
from engine.world.faults import GARBAGE, UNAVAILABLE, FaultProfile, FaultyWorld, profiles_of
from engine.world.offline import OfflineWorld
from tests.parts.waiting import all_wait
from tests.parts.worlds import ORDER, call, shop

LIST = call("list_orders")


def clock() -> float:
    """The run's clock stands still."""
    return 5.0


async def answers(profile: FaultProfile, seed: int, calls: list[ToolCall]) -> list[str]:
    """What each call came to: its content, or the name of its fault."""
    session = await FaultyWorld(OfflineWorld(), {"list_orders": profile}, seed).open(shop(), 3)
    found = []

    async def answer(made: ToolCall) -> None:
        try:
            found.append((await session.call(made)).content)
        except ToolError:
            found.append("ToolError")
        except anyio.get_cancelled_exc_class():
            found.append("TimeoutError")
            raise

    for made in calls:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(answer, made)
            await all_wait()
            tasks.cancel_scope.cancel()
    await session.close()
    return found


async def test_faults_follow_from_the_seed() -> None:
    """The same seed gives the same faults, another seed others; every kind occurs."""
    profile = FaultProfile(timeout=0.2, error=0.2, garbage=0.2, flaky=0.2)
    first = await answers(profile, 1, [LIST] * 25)
    assert await answers(profile, 1, [LIST] * 25) == first
    assert await answers(profile, 2, [LIST] * 25) != first
    assert {"ToolError", "TimeoutError", GARBAGE} < set(first)
    assert len(set(first)) == 5
    assert first[first.index(UNAVAILABLE.content) + 1] == first[-1] != UNAVAILABLE.content


async def test_tools_without_a_profile_work() -> None:
    """Only the named tool misbehaves, and its faults do not enter the mapping."""
    world = OfflineWorld()
    session = await FaultyWorld(world, {"list_orders": FaultProfile(garbage=1)}, 1).open(shop(), 0)
    assert (await session.call(ORDER)).ok
    assert await session.call(LIST) == Observation(content=GARBAGE, ok=True)
    final = await session.close()
    assert final["orders"]["new"]["code"] == "47"
    clean = await world.open(shop(), 0)
    await clean.call(ORDER)
    assert '"code":"47"' in (await clean.call(LIST)).content
    await clean.close()


async def test_an_injected_error_executes_nothing() -> None:
    """The call is lost before it reaches the world."""
    session = await FaultyWorld(OfflineWorld(), {"place_order": FaultProfile(error=1)}, 1).open(shop(), 0)
    with pytest.raises(ToolError, match="place_order: injected fault"):
        await session.call(ORDER)
    assert await session.close() == shop().world.state


async def test_latency_delays_the_answer() -> None:
    """The delay is waited for, not skipped."""
    session = await FaultyWorld(OfflineWorld(), {"list_orders": FaultProfile(latency_s=0.05)}, 1).open(shop(), 0)
    start_s = anyio.current_time()
    for _ in range(4):
        await session.call(LIST)
    assert anyio.current_time() - start_s > 0.03
    await session.close()


async def test_a_flaky_tool_works_when_the_same_call_is_made_again() -> None:
    """The first time nothing is executed; the same call is the same however it is written, another one fails too."""
    world = FaultyWorld(OfflineWorld(), {"*": FaultProfile(flaky=1)}, 1)
    session = await world.open(shop(), 0)
    assert (
        await session.call(LIST) == UNAVAILABLE == Observation(content='{"error":"temporarily unavailable"}', ok=False)
    )
    assert (await session.call(LIST)).ok
    assert await session.call(ORDER) == UNAVAILABLE
    again = replace(ORDER, arguments=dict(reversed(ORDER.arguments.items())))
    assert (await session.call(again)).ok
    assert await session.call(ORDER) == UNAVAILABLE
    state = await session.close()
    assert len(state["orders"]) == len(shop().world.state["orders"]) + 1


async def test_what_is_no_json_is_refused_by_the_world_and_not_by_a_fault() -> None:
    """It would not work the second time either."""
    session = await FaultyWorld(OfflineWorld(), {"*": FaultProfile(flaky=1)}, 1).open(shop(), 0)
    assert await session.call(call("place_order", item="\ud800", quantity=1)) != UNAVAILABLE
    await session.close()


RECOVERS = {
    "before": [{"called": {"tool": "place_order", "ok": False}}, {"called": {"tool": "place_order", "ok": True}}]
}


@pytest.mark.parametrize(("tries", "met"), [(1, False), (2, True)])
async def test_a_rubric_can_require_recovery(tries: int, met: bool) -> None:
    """The check of docs/simulators.md: the call failed, and was made again until it worked."""
    session = await FaultyWorld(OfflineWorld(), {"place_order": FaultProfile(flaky=1)}, 1).open(shop(), 0)
    events = []
    for number in range(tries):
        said = await session.call(ORDER)
        details = {"tool": ORDER.name, "arguments": ORDER.arguments, "ok": said.ok}
        events.append(Event(number=number, turn=number, kind=EventKind.CALLED, text=said.content, **details))
    await session.close()
    assert evaluate_check(RECOVERS, comparable(shop(), events)).met is met


# --- the lines of faults.jsonl --------------------------------------------------------------------------------------


async def test_every_fault_has_its_line(tmp_path: Path) -> None:
    """With episode, call, tool and time; calls that nothing happened to have none."""
    config = load(None, ["world.faults=list_orders: garbage=1; place_order: flaky=1"]).config
    run = RunDir(tmp_path)

    async def lines() -> list[dict]:
        return await anyio.to_thread.run_sync(lambda: list(read_lines(run.faults)))

    async with open_world(run, config, SimulatorModels(), clock) as made:
        session = await made.world.open(shop(), 7)
        for asked in (LIST, ORDER, ORDER, LIST):
            await session.call(asked)
        await session.close()
        await made.flush()
        rows = await lines()
        await made.flush()
    assert rows == await lines()
    assert [(row["call"], row["tool"], row["fault"]) for row in rows] == [
        (0, "list_orders", "garbage"),
        (1, "place_order", "flaky"),
        (3, "list_orders", "garbage"),
    ]
    assert all((row["task"], row["seed"], row["at_s"]) == (shop().id, 7, 5.0) for row in rows)


async def test_faults_that_end_an_episode_are_written_when_it_never_becomes_a_frame(tmp_path: Path) -> None:
    """What is pending when the world is closed, cancelled or not, is written then."""
    config = load(None, ["world.faults=list_orders: timeout=1; *: error=1"]).config
    run = RunDir(tmp_path)
    with anyio.CancelScope() as scope:
        async with open_world(run, config, SimulatorModels(), clock) as made:
            session = await made.world.open(shop(), 7)
            with pytest.raises(ToolError):
                await session.call(ORDER)
            scope.deadline = anyio.current_time() + 0.2
            await session.call(LIST)
    rows = await anyio.to_thread.run_sync(lambda: list(read_lines(run.faults)))
    assert [row["fault"] for row in rows] == ["error", "timeout"]


# --- the configuration ----------------------------------------------------------------------------------------------


def test_profiles_are_written_by_tool() -> None:
    """Several faults a tool, several tools, `*` for the others; spaces say nothing."""
    text = " get_order: timeout=0.01,error = 0.02 ;*:garbage=1e-2, latency_s=0.5;"
    assert profiles_of(text) == {
        "get_order": FaultProfile(timeout=0.01, error=0.02),
        "*": FaultProfile(garbage=0.01, latency_s=0.5),
    }
    assert profiles_of("") == profiles_of(" ; ") == {}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("error=0.1", "'error=0.1': write `tool: name=number, ...`, once per tool (* is every other one)"),
        ("*: ", "write `tool: name=number, ...`"),
        (": error=0.1", "write `tool: name=number, ...`"),
        ("a: error=0.1; a: garbage=0.1", "'a: garbage=0.1': write `tool: name=number, ...`, once per tool"),
        ("a: eror=0.1", "'a: eror=0.1': there is no fault 'eror'; there are latency_s, timeout, error, garbage, flaky"),
        ("a: error", "error needs a number, not ''"),
        ("a: error=often", "error needs a number, not 'often'"),
        ("a: error=0.1, error=0.2", "error is given twice"),
        ("a: error=0.6, garbage=0.6", "together at most 1"),
        ("a: error=-0.1", "at least 0"),
        ("a: error=nan", "at least 0"),
        ("a: latency_s=inf", "latency_s is a finite number of at least 0"),
    ],
)
async def test_a_profile_that_cannot_be_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    """Before anything is played, with the key, the part that is wrong and what to write."""
    with pytest.raises(ConfigError, match=r"^world\.faults: '") as caught:
        async with open_world(
            RunDir(tmp_path), load(None, [f'world.faults="{text}"']).config, SimulatorModels(), clock
        ):
            raise AssertionError("it was opened")
    assert reason in str(caught.value)


def test_faults_are_the_offline_worlds() -> None:
    """Off by default; with a world of one's own the key has no effect, and setting it says so."""
    assert load(None).config.world.faults == ""
    own = load(None, ["world.kind=engine.scripted:ConstantWorld"]).config
    assert "faults" not in dump(own)
    with pytest.raises(ConfigError, match=r"world\.faults has no effect with world\.kind = 'engine\.scr"):
        load(None, ["world.kind=engine.scripted:ConstantWorld", "world.faults=*: error=1"])


def committed(path: Path) -> int:
    """Entries that another process would find."""
    with closing(sqlite3.connect(path)) as connection:
        (count,) = connection.execute("SELECT count(*) FROM entries").fetchone()
    return count


async def test_the_configured_world_misbehaves_and_keeps_its_flush(tmp_path: Path) -> None:
    """A named tool has its own profile, the others that of `*`; what was answered is committed all the same."""
    config = load(None, ["world.faults=list_orders: garbage=1; *: error=1"]).config
    run = RunDir(tmp_path)
    async with open_world(run, config, SimulatorModels(), clock) as made:
        session = await made.world.open(shop(), 0)
        assert await session.call(LIST) == Observation(content=GARBAGE, ok=True)
        with pytest.raises(ToolError, match="place_order: injected fault"):
            await session.call(ORDER)
        await session.close()
        await made.flush()
        assert await anyio.to_thread.run_sync(committed, run.world) == 1
    async with open_world(run, load(None).config, SimulatorModels(), clock) as made:
        session = await made.world.open(shop(), 0)
        assert '"pear"' in (await session.call(LIST)).content
        assert made.mapped.mapping.counts == (1, 0, 0, 0)
        await session.close()


async def test_the_same_run_has_the_same_faults(tmp_path: Path) -> None:
    """They follow from run.seed."""

    async def heard(*sets: str) -> list[str]:
        config = load(None, ["world.faults=*: garbage=0.5", *sets]).config
        async with open_world(RunDir(tmp_path), config, SimulatorModels(), clock) as made:
            session = await made.world.open(shop(), 0)
            contents = [(await session.call(LIST)).content for _ in range(32)]
            await session.close()
        return contents

    assert await heard() == await heard()
    assert await heard() != await heard("run.seed=1")
