"""Running and killing the learner in real processes that share one import (a fork server), for tests and bench."""

import hashlib
import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Sequence
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

from engine.config.load import load
from engine.rundir.layout import RunDir, read_json, read_lines
from engine.types import EpisodeGroup
from learner import checkpoint, loop, records
from learner.__main__ import serve
from learner.forming import scored_rewards
from learner.lifetime import Lifetime
from learner.loop import Learner
from learner.model import ADAPTER_CONFIG, WEIGHTS, LoraPolicy
from tests.parts.learner_runs import make_group

POINTS = ("before checkpoint", "after checkpoint", "after rows", "after publish", "after progress")
"""Between the five parts of a step (docs/learner.md 5.3)."""


def make_groups(policy: LoraPolicy, usable: int) -> list[EpisodeGroup]:
    """A stream of which `usable` groups (a multiple of four) train; one in five has no variance and is dropped."""
    return [
        make_group(position, policy=policy, rewards=[0.5] * 4 if position % 5 == 3 else None)
        for position in range(usable * 5 // 4)
    ]


def context() -> ForkServerContext:
    """Children are forked from a server that has torch and peft loaded: a start costs tenths of a second."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["tests.parts.learner_kills"])
    return found


def run_learner(
    path: Path, point: str | None = None, at_step: int = 0, after_s: float | None = None, *, loaded: bool = False
) -> None:
    """Child: run the learner; SIGKILL itself at `point` of step `at_step`, or `after_s` after start (or loading)."""
    run = RunDir(path)
    learner = Learner(run, load(run.config).config, Lifetime())
    if point is not None:
        _plant(learner, point, at_step)
    if after_s is not None:
        begin = learner._begin

        def timed() -> None:
            timer = threading.Timer(after_s, _die)
            if loaded:
                begin()
                timer.start()
            else:
                timer.start()
                begin()

        learner._begin = timed  # type: ignore[method-assign]
    os._exit(serve(learner, flush=False))


def start(path: Path, **options: Any) -> ForkServerProcess:
    """Start a child; the caller joins it."""
    process = context().Process(target=run_learner, args=(path,), kwargs=options)
    process.start()
    return process


def finish(path: Path, **options: Any) -> int | None:
    """Start a child, wait for its end, and return its exit code (-9: killed)."""
    process = start(path, **options)
    try:
        process.join()
    finally:
        # A test that is ended while it waits leaves nothing running.
        process.kill()
    return process.exitcode


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _plant(learner: Learner, point: str, at_step: int) -> None:
    def wrap(owner: Any, name: str, *, before: bool = False) -> None:
        original = vars(owner)[name]

        def wrapped(*arguments: Any, **options: Any) -> Any:
            due = learner.counters.step == at_step - 1 and len(learner.opened.usable) == 2
            if before and due:
                _die()
            result = original(*arguments, **options)
            if due:
                _die()
            return result

        setattr(owner, name, wrapped)

    if point == "before checkpoint":
        wrap(checkpoint.Checkpoint, "write", before=True)
    elif point == "after checkpoint":
        wrap(checkpoint.Checkpoint, "write")
    elif point == "after rows":
        wrap(records, "append")
    elif point == "after publish":
        wrap(loop, "publish")
    else:
        original = vars(loop)["write_progress"]

        def progressed(*arguments: Any, **options: Any) -> None:
            original(*arguments, **options)
            if learner.counters.step == at_step and learner.opened.read == 0 and arguments[1].step_s > 0:
                _die()

        vars(loop)["write_progress"] = progressed


def hashes(run: RunDir) -> dict[int, str]:
    """Version -> sha256 of what its files hold, weights and configuration; meta.json is not asked."""
    return {
        version: hashlib.sha256(
            b"".join((run.adapter(version) / name).read_bytes() for name in (WEIGHTS, ADAPTER_CONFIG))
        ).hexdigest()
        for version in run.versions()
    }


def check_history(run: RunDir, groups: Sequence[EpisodeGroup]) -> None:
    """Every group that was read is trained, or dropped and counted, exactly once; steps, versions and files agree."""
    rows = list(read_lines(run.learner / "steps.jsonl"))
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    trained = [found["id"] for row in rows for found in row["groups"]]
    dropped = [group_id for row in rows for ids in row["dropped"].values() for group_id in ids]
    assert not [group_id for group_id, times in Counter([*trained, *dropped]).items() if times > 1]
    in_steps = groups[: len(trained) + len(dropped)]
    assert {*trained, *dropped} == {group.id for group in in_steps}
    assert set(dropped) == {group.id for group in in_steps if len(set(scored_rewards(group))) == 1}
    assert [row["learner/step_count"] for row in read_lines(run.learner / "metrics.jsonl")] == [r["step"] for r in rows]
    assert run.versions() == list(range(len(rows) + 1))
    progress = read_json(run.progress)
    assert progress is not None
    assert (progress["trained_groups"], progress["dropped"]["zero_variance"]) == (len(trained), len(dropped))
    decided = len(trained) + sum(progress["dropped"].values()) + progress["waiting"]
    assert decided == progress["frames_read"] <= len(groups)
    assert progress["cursor"] == dict(zip(("segment", "offset"), rows[-1]["cursor"], strict=True))
