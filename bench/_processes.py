"""Processes and run directories that several benches need: a mock server, a simulated learner, a small run."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import orjson

from engine.config.load import validate
from engine.learnerdir.adapter import is_published
from engine.preflight.manifest import create
from engine.processes.child import leash
from engine.rundir.layout import RunDir, write_json


@contextmanager
def interpreter(*arguments: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A child of this interpreter, ended with the block; a bench that is killed leaves none running."""
    argv = [sys.executable, *arguments]
    # Safe here: only this thread starts children.
    with subprocess.Popen(argv, preexec_fn=leash, **options) as child:  # noqa: PLW1509
        try:
            yield child
        finally:
            child.kill()


def process(module: str, *arguments: str, **options: Any) -> AbstractContextManager[subprocess.Popen[bytes]]:
    """A module of this project as such a child."""
    return interpreter("-m", module, *arguments, **options)


@contextmanager
def serving(*arguments: str) -> Iterator[str]:
    """A server process that prints one JSON line when it is ready; gives its URL."""
    with process(*arguments, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        yield str(orjson.loads(child.stdout.readline())["url"])


@contextmanager
def simulated_learner(run: RunDir) -> Iterator[None]:
    """The simulated learner's process; version 0 is published when the block begins."""
    with process("engine.scripted", "learner", str(run.path)) as child:
        while not is_published(run, 0):
            if child.poll() is not None:
                raise SystemExit("the simulated learner ended early")
            time.sleep(0.05)
        yield


def prepared(base: Path, url: str, live: int, **sections: dict[str, Any]) -> RunDir:
    """A run of the shipped tiny model and pack against one server, `live` episodes at once, without evaluations."""
    group_size, groups_per_step = 16, 16
    raw: dict[str, Any] = {
        "run": {"name": "bench", "dir": str(base), "steps": 100_000},
        "policy": {"launch": "none", "urls": (url,)},
        "learner": {"kind": "simulated", "pace_s": 0.1, "rank": 16},
        "schedule": {
            "group_size": group_size,
            "groups_per_step": groups_per_step,
            "max_staleness": -(-2 * live // (group_size * groups_per_step)),
            "live_slots": live,
        },
        "eval": {"every": 0, "heldout_tasks": 0},
        "stream": {"low_water_mb": 0.0},
        **sections,
    }
    run = create(validate(raw, {}))
    write_json(run.path / "servers.json", {"urls": [url]})
    return run
