"""engine.errors: the classifier at a boundary, and the deadlines of an episode."""

from contextlib import AsyncExitStack

import anyio
import anyio.lowlevel
import pytest

from engine.config.plugins import foreign
from engine.errors import (
    ConfigError,
    Deadline,
    PolicyError,
    RunError,
    ToolError,
    UserError,
    WallClockError,
    boundary,
    owned_tasks,
)


async def test_a_boundary_names_what_went_wrong_and_lets_its_own_errors_pass():
    """Anything becomes the boundary's error; what crossed an inner boundary keeps its kind."""
    with pytest.raises(ToolError, match="get_order: KeyError: 'id'") as caught:
        async with boundary(ToolError, "get_order"):
            raise KeyError("id")
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(UserError, match="left"):
        async with boundary(ToolError, "get_order"):
            raise UserError("left")


class SilentError(Exception):
    """An error of somebody's own that cannot say what it is."""

    def __str__(self):
        raise KeyError("no text")


async def test_an_error_without_a_text_is_classified_too():
    """Its class is named: whatever somebody's code raises ends one episode, and not the run."""
    with pytest.raises(ToolError, match=r"^get_order: SilentError: <exception str\(\) failed>$"):
        async with boundary(ToolError, "get_order"):
            raise SilentError
    with (
        pytest.raises(ConfigError, match=r"^world\.kind raised SilentError: <exception str\(\) failed>"),
        foreign("world.kind"),
    ):
        raise SilentError


async def test_a_step_has_its_own_limit_however_late_it_begins():
    """Ten quick steps take longer than one may; the eleventh is slow and is blamed, within its limit."""

    async def steps():
        with Deadline("g000001.00", step_s=0.8, wall_s=60.0) as deadline:
            for _ in range(10):
                async with boundary(PolicyError, "quick", deadline):
                    await anyio.sleep(0.09)
            began.append(anyio.current_time())
            async with boundary(ToolError, "slow", deadline):
                await anyio.sleep(9)

    began = []
    with pytest.raises(ToolError, match=r"slow: no answer within 0\.8 s"):
        await steps()
    assert 0.75 < anyio.current_time() - began[0] < 8


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


async def fail_when(gone):
    """A task that fails once it is told to."""
    await gone.wait()
    raise RunError("task")


async def test_tasks_end_with_their_block_and_its_error_comes_out_as_it_is():
    """However the block ends, also one that is entered by hand."""
    ended = []

    async def forever():
        try:
            await anyio.sleep_forever()
        finally:
            ended.append(True)

    async def failing():
        async with AsyncExitStack() as opened:
            (await opened.enter_async_context(owned_tasks())).start_soon(forever)
            await anyio.lowlevel.checkpoint()
            raise RunError("block")

    async with owned_tasks() as tasks:
        tasks.start_soon(forever)
        await anyio.lowlevel.checkpoint()
    with pytest.raises(RunError, match="block"):
        await failing()
    with anyio.move_on_after(0.01) as scope:
        async with owned_tasks() as tasks:
            tasks.start_soon(forever)
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert len(ended) == 3


@pytest.mark.parametrize("failing", [False, True])
async def test_a_task_that_fails_ends_its_block(failing):
    """In a group, beside the error of the block if that has one too."""

    async def block():
        async with owned_tasks() as tasks:
            gone = anyio.Event()
            tasks.start_soon(fail_when, gone)
            gone.set()
            try:
                await anyio.sleep_forever()
            finally:
                if failing:
                    raise UserError("block")

    with anyio.fail_after(5), pytest.raises(ExceptionGroup) as caught:
        await block()
    assert [str(error) for error in caught.value.exceptions] == ["task", "block"][: 1 + failing]
