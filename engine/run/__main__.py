"""`python -m engine.run RUN_DIR --parent-pid PID`: the engine process, as the supervisor starts it.

Exit codes: 0 done or drained, 1 failed, 2 configuration.
"""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
from pathlib import Path

import anyio
import structlog

from engine.config.load import load
from engine.errors import ConfigError, SynthError, leaf_errors
from engine.packs.pack import load_pack
from engine.processes.event_loop import UVLOOP
from engine.run.compose import build_parts
from engine.run.counters import RunClock
from engine.run.engine import Engine, compose
from engine.rundir.event_lines import open_event_lines
from engine.rundir.layout import RunDir
from engine.stream.closed import reopen_stream
from engine.stream.integrity import require_complete
from engine.telemetry.log import configure_logging

log = structlog.get_logger()

_PARENT_S = 0.5
"""Seconds between two looks whether the supervisor still lives."""


async def serve_run(run: RunDir, parent: int | None = None) -> None:
    """Run the engine of a prepared run directory to its end.

    Raises ConfigError or RunError."""
    config = load(run.config).config
    # Before a position is admitted: what a step used and the stream lacks would be played, and trained on, again.
    await anyio.to_thread.run_sync(require_complete, run)
    for directory in (run.trajectories, run.eval):
        reopen_stream(directory)
    pack, clock = await anyio.to_thread.run_sync(load_pack, run.pack), RunClock(run.metrics)
    # Closed last: servers that are left still tell what is unloaded there.
    async with open_event_lines(run.swaps) as swaps, build_parts(run, config, clock, swaps.append) as parts:
        _spare_the_collector()
        await _with_signals(compose(run, parts, pack, swaps.append), parent)


def _spare_the_collector() -> None:
    """Take what stays for ever (the pack's tasks) out of garbage collection, and collect less often.

    A full collection over a pack of 5,000 tasks blocked the loop for 0.4 s, and collecting took 0.16 ms a turn."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


async def _with_signals(engine: Engine, parent: int | None) -> None:
    """Drive; the first SIGTERM or SIGINT (or the supervisor's death) drains, a second one stops."""
    async with anyio.create_task_group() as tg:

        async def stop() -> None:
            await engine.drain()
            await anyio.sleep(engine.parts.config.run.drain_s)
            tg.cancel_scope.cancel()

        async def signals() -> None:
            with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
                async for _ in received:
                    if engine.rollout.scheduler.draining:
                        tg.cancel_scope.cancel()
                    tg.start_soon(stop)

        async def orphaned() -> None:
            while parent is None or os.getppid() == parent:  # noqa: ASYNC110 - the kernel sets no event
                await anyio.sleep(_PARENT_S)
            await stop()

        tg.start_soon(signals)
        tg.start_soon(orphaned)
        await engine.drive()
        tg.cancel_scope.cancel()


def main() -> int:
    """Entry point of the engine process; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m engine.run", description="The engine process of one run.")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--parent-pid", type=int, default=None, help="drain when this is no longer the parent")
    arguments = parser.parse_args()
    run = RunDir(arguments.run_dir)
    configure_logging(run.log, "engine")
    problems: list[SynthError] = []
    try:
        anyio.run(serve_run, run, arguments.parent_pid, backend_options={"use_uvloop": UVLOOP})
    except* SynthError as group:
        problems.extend(leaf_errors(group))
    for sentence in dict.fromkeys(str(problem) for problem in problems):
        sys.stderr.write(f"{sentence}\n")
        log.error("engine failed", error=sentence)
    if not problems:
        return 0
    return 2 if any(isinstance(problem, ConfigError) for problem in problems) else 1


if __name__ == "__main__":
    sys.exit(main())
