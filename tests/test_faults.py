"""Fault injection at the tool boundary."""

import anyio
import pytest

from engine.errors import ToolError
from engine.types import Observation, ToolCall
from engine.world.faults import GARBAGE, FaultProfile, FaultyWorld
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
