"""Brings a run's metrics elsewhere while it runs: a process of its own, so that nothing there can hold up the engine.

Started as ``python -m engine.telemetry.serve RUN_DIR --parent-pid PID [--port N] [--to WRITER ...]``. On SIGTERM, or
when its parent is gone, it writes what is left and ends. Exit codes: 0 ended when asked, 1 failed, 2 configuration.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from types import FrameType

from engine.errors import ConfigError, SynthError
from engine.rundir.layout import RunDir
from engine.telemetry.follow import Follower
from engine.telemetry.writers import WRITERS, Writer, open_writer

_POLL_S = 0.5


def relay(run: RunDir, writers: Sequence[Writer], stopping: Callable[[], bool]) -> int:
    """Give every row to all `writers`, until it stops, and then what was written before that; returns how many rows."""
    follower, rows = Follower(run), 0
    while True:
        # Asked first: a row from before the stop is always read.
        last = stopping()
        for sample in follower.read():
            rows += 1
            for writer in writers:
                writer.write(sample)
        if last:
            return rows
        time.sleep(_POLL_S)


def until_signalled(parent_pid: int | None = None) -> Callable[[], bool]:
    """Whether SIGTERM or SIGINT came since this call, or the parent is gone; for the main thread."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature that signal.signal asks for
        received.append(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, note)
    return lambda: bool(received) or (parent_pid is not None and os.getppid() != parent_pid)


def serve_metrics(run: RunDir, to: Sequence[str], port: int | None, stopping: Callable[[], bool]) -> None:
    """Write and answer until it stops.

    Raises ConfigError for a writer or a port that cannot be used, RunError for a damaged file."""
    with ExitStack() as open_ones:
        writers: list[Writer] = [open_ones.enter_context(closing(open_writer(name, run))) for name in to]
        if port is not None:
            # Loaded where a port is asked for alone: it takes its time, and export needs none of it.
            from engine.telemetry.prometheus import Exposition  # noqa: PLC0415

            exposition = open_ones.enter_context(closing(Exposition(port)))
            sys.stdout.write(f"Prometheus text at {exposition.url}\n")
            sys.stdout.flush()
            writers.append(exposition)
        relay(run, writers, stopping)


def main() -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m engine.telemetry.serve", description="Metrics elsewhere.")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--parent-pid", type=int, help="end when this is no longer the parent")
    parser.add_argument("--port", type=int, help="answer with Prometheus text on this port of 127.0.0.1")
    parser.add_argument("--to", action="append", default=[], choices=WRITERS, help="write there; repeatable")
    arguments = parser.parse_args()
    stopping = until_signalled(arguments.parent_pid)
    try:
        serve_metrics(RunDir(arguments.run_dir), arguments.to, arguments.port, stopping)
    except (SynthError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2 if isinstance(error, ConfigError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
