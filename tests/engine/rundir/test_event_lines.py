"""engine.rundir.event_lines: events are written in order, beside the event loop, and not lost."""

import threading
from contextlib import nullcontext
from pathlib import Path

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from engine.config.load import load
from engine.errors import ConfigError, RunError, leaf_errors
from engine.preflight.manifest import create
from engine.run.__main__ import serve_run
from engine.rundir.event_lines import open_event_lines
from engine.rundir.layout import JsonLines, read_lines


class Slow:
    """A disk that takes a row only when the test lets it."""

    def __init__(self, monkeypatch):
        self.go, self.threads = threading.Event(), set()
        append = JsonLines.append

        def slowly(file, row):
            self.threads.add(threading.current_thread())
            assert self.go.wait(10)
            append(file, row)

        monkeypatch.setattr(JsonLines, "append", slowly)


async def written(path):
    """The numbers in a file."""
    return await anyio.to_thread.run_sync(lambda: [row["n"] for row in read_lines(path)])


async def until(condition):
    """Wait for another thread, some seconds at most."""
    with anyio.fail_after(15):
        while not await condition():  # noqa: ASYNC110 - another thread sets no event
            await anyio.sleep(0.005)


async def test_the_loop_goes_on_while_the_disk_takes_its_time(tmp_path, monkeypatch):
    """Rows are written by another thread, in the order of their events; a flush returns when they are."""
    slow, path = Slow(monkeypatch), tmp_path / "events.jsonl"

    async def begun():
        return slow.threads

    async with open_event_lines(path) as lines:
        lines.append({"n": 0})
        await until(begun)
        for number in range(1, 100):
            lines.append({"n": number})
            await anyio.lowlevel.checkpoint()
        assert await written(path) == []
        slow.go.set()
        await lines.flush()
        assert await written(path) == list(range(100))
    assert threading.main_thread() not in slow.threads


async def test_an_event_is_written_without_being_asked_for(tmp_path):
    """Whoever follows the file sees it soon."""
    path = tmp_path / "events.jsonl"

    async def all_there():
        return await written(path) == [1, 2]

    async with open_event_lines(path) as lines:
        lines.append({"n": 1})
        lines.append({"n": 2})
        await until(all_there)


@pytest.mark.parametrize("ending", ["cancelled", "failed", "left"])
async def test_what_is_pending_at_the_end_is_written(tmp_path, ending):
    """However the block ends; its error comes out as it is."""
    path, scope = tmp_path / "events.jsonl", anyio.CancelScope()

    async def block():
        async with open_event_lines(path) as lines:
            lines.append({"n": 1})
            if ending == "failed":
                raise ConfigError("mine")
            if ending == "cancelled":
                scope.cancel()
                await anyio.lowlevel.checkpoint()

    with scope, pytest.raises(ConfigError, match=r"^mine$") if ending == "failed" else nullcontext():
        await block()
    assert await written(path) == [1]


async def test_a_disk_that_takes_nothing_ends_the_block():
    """With the sentence on what to do, also when only the last row does not fit."""

    async def block(*, wait):
        async with open_event_lines(Path("/dev/full")) as lines:
            lines.append({"n": 1})
            if wait:
                await anyio.sleep_forever()

    for wait in (True, False):
        with anyio.fail_after(5), pytest.raises((RunError, ExceptionGroup)) as caught:
            await block(wait=wait)
        errors = list(leaf_errors(caught.value)) if isinstance(caught.value, ExceptionGroup) else [caught.value]
        assert {type(error) for error in errors} == {RunError}
        assert "/dev/full could not be written: No space left on device; free space" in str(errors[0])


@pytest.mark.slow
def test_an_engine_writes_no_event_on_its_loop(tmp_path, monkeypatch, blockbuster):
    """Neither what happens to adapters, nor faults, nor metrics rows, nor evaluations."""
    # What is read before anything is played may block.
    blockbuster.deactivate()
    settings = [
        "run.steps=50",
        "eval.every=0",
        "eval.heldout_tasks=2",
        "world.faults=*: error=0.5",
        f"run.dir={tmp_path}",
    ]
    run = create(load("dry", settings).config)
    run.adapter(0).mkdir()
    writers, append = {}, JsonLines.append

    def noting(file, row):
        writers.setdefault(file._path.name, set()).add(threading.current_thread())
        append(file, row)

    async def all_written():
        return {"swaps.jsonl", "faults.jsonl", "metrics.jsonl", "evaluations.jsonl"} <= writers.keys()

    async def played():
        async with anyio.create_task_group() as tg:
            tg.start_soon(serve_run, run)
            await until(all_written)
            tg.cancel_scope.cancel()

    monkeypatch.setattr(JsonLines, "append", noting)
    monkeypatch.setattr("engine.run.__main__._spare_the_collector", lambda: None)
    anyio.run(played)
    assert threading.main_thread() not in set().union(*writers.values())
