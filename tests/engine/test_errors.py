"""engine.errors: the classifier at a boundary, and the deadlines of an episode."""

import anyio
import pytest

from engine.errors import Deadline, PolicyError, ToolError, UserError, WallClockError, boundary


async def test_a_boundary_names_what_went_wrong_and_lets_its_own_errors_pass():
    """Anything becomes the boundary's error; what crossed an inner boundary keeps its kind."""
    with pytest.raises(ToolError, match="get_order: KeyError: 'id'") as caught:
        async with boundary(ToolError, "get_order"):
            raise KeyError("id")
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(UserError, match="left"):
        async with boundary(ToolError, "get_order"):
            raise UserError("left")


async def test_a_step_has_its_own_limit_however_late_it_begins():
    """Ten quick steps take longer than one may; the eleventh is slow and is blamed, within its limit."""

    async def steps():
        with Deadline("g000001.00", step_s=0.2, wall_s=60.0) as deadline:
            for _ in range(10):
                async with boundary(PolicyError, "quick", deadline):
                    await anyio.sleep(0.04)
            began.append(anyio.current_time())
            async with boundary(ToolError, "slow", deadline):
                await anyio.sleep(9)

    began = []
    with pytest.raises(ToolError, match=r"slow: no answer within 0\.2 s"):
        await steps()
    assert 0.15 < anyio.current_time() - began[0] < 2


async def test_between_steps_only_the_wall_clock_counts():
    """What is no step may take longer than one; the wall clock ends it all, and a step that outlives it."""
    with Deadline("g000001.00", step_s=0.05, wall_s=60.0) as deadline:
        async with boundary(PolicyError, "quick", deadline):
            pass
        await anyio.sleep(0.2)
    with (
        pytest.raises(WallClockError, match=r"g000001\.00: 0\.1 s passed"),
        Deadline("g000001.00", step_s=60.0, wall_s=0.1) as deadline,
    ):
        async with boundary(PolicyError, "slow", deadline):
            await anyio.sleep(9)


async def test_a_cancellation_from_outside_is_not_a_missed_deadline():
    """It passes through, and is caught by the scope that asked for it."""
    with anyio.move_on_after(0.05) as scope, Deadline("g000001.00", step_s=60.0, wall_s=60.0) as deadline:
        async with boundary(PolicyError, "slow", deadline):
            await anyio.sleep(9)
    assert scope.cancelled_caught
