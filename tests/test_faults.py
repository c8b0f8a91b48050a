"""Fault injection at the tool boundary, and its key of the configuration."""

import sqlite3
from contextlib import closing
from pathlib import Path

import anyio
import pytest

from engine.config import dump, load
from engine.errors import ConfigError, ToolError
from engine.parts import _world
from engine.rundir import RunDir
from engine.simulators import Models
from engine.types import Observation, ToolCall
from engine.world.faults import GARBAGE, FaultProfile, FaultyWorld, profiles_of
from engine.world.offline import OfflineWorld
from tests.worlds import ORDER, call, shop

LIST = call("list_orders")


async def answers(profile: FaultProfile, seed: int, calls: list[ToolCall]) -> list[str]:
    """What each call came to: its content, or the name of its fault."""
    session = await FaultyWorld(OfflineWorld(), {"list_orders": profile}, seed).open(shop(), 3)
    found = []
    for made in calls:
        try:
            with anyio.fail_after(0.05):
                found.append((await session.call(made)).content)
        except (ToolError, TimeoutError) as error:
            found.append(type(error).__name__)
    await session.close()
    return found


async def test_faults_follow_from_the_seed() -> None:
    """The same seed gives the same faults, another seed others; every kind occurs."""
    profile = FaultProfile(timeout=0.2, error=0.2, garbage=0.2)
    first = await answers(profile, 1, [LIST] * 25)
    assert await answers(profile, 1, [LIST] * 25) == first
    assert await answers(profile, 2, [LIST] * 25) != first
    assert {"ToolError", "TimeoutError", GARBAGE} < set(first)
    assert len(set(first)) == 4


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
        ("a: eror=0.1", "'a: eror=0.1': there is no fault 'eror'; there are latency_s, timeout, error, garbage"),
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
        async with _world(RunDir(tmp_path), load(None, [f'world.faults="{text}"']).config, Models()):
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
    async with _world(run, config, Models()) as (world, flush):
        session = await world.open(shop(), 0)
        assert await session.call(LIST) == Observation(content=GARBAGE, ok=True)
        with pytest.raises(ToolError, match="place_order: injected fault"):
            await session.call(ORDER)
        await session.close()
        await flush()
        assert await anyio.to_thread.run_sync(committed, run.world) == 1
    async with _world(run, load(None).config, Models()) as (world, _):
        session = await world.open(shop(), 0)
        assert '"pear"' in (await session.call(LIST)).content
        assert world.mapping.counts == (1, 0, 0, 0)
        await session.close()


async def test_the_same_run_has_the_same_faults(tmp_path: Path) -> None:
    """They follow from run.seed."""

    async def heard(*sets: str) -> list[str]:
        config = load(None, ["world.faults=*: garbage=0.5", *sets]).config
        async with _world(RunDir(tmp_path), config, Models()) as (world, _):
            session = await world.open(shop(), 0)
            contents = [(await session.call(LIST)).content for _ in range(32)]
            await session.close()
        return contents

    assert await heard() == await heard()
    assert await heard() != await heard("run.seed=1")
