"""A learner that trains nothing: takes groups in arrival order, at a set pace, and publishes zero adapters.

It keeps the file contracts of the real one (docs/learner.md 5): order of a step is checkpoint, publish, steps.jsonl,
progress.json; a restart goes on at the checkpoint's cursor, so no group is trained twice. It drops only groups that
are too stale or have no scored episode.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

from engine.config.load import load
from engine.config.tree import Config
from engine.modeldir.shape import TARGET_MODULES
from engine.rundir.layout import FORMAT, JsonLines, RunDir, read_json, read_lines, write_directory, write_json
from engine.scripted.zero_adapter import zero_adapter
from engine.stream.reader import StreamReader
from engine.types import TaskGroup

_WAIT_S = 0.2


@dataclass(slots=True, kw_only=True)
class Position:
    """Where the learner is after its last completed step; what a checkpoint holds."""

    step: int = 0
    cursor: tuple[int, int] = (0, 0)
    frames_read: int = 0
    trained_groups: int = 0
    dropped: dict[str, int] = field(
        default_factory=lambda: {"stale": 0, "unscored": 0, "failed": 0, "zero_variance": 0}
    )
    wait_s: float = 0.0


class Stopped(Exception):  # noqa: N818 - flow control, not a failure
    """SIGTERM, or the parent is gone."""


class SimulatedLearner:
    """The process of one run; `serve` is the only entry."""

    def __init__(self, run: RunDir, config: Config, alive: Callable[[], bool]) -> None:
        self._run, self._config, self._alive = run, config, alive
        self._files = zero_adapter(Path(config.model.path), config.learner.rank, config.learner.alpha)
        self._at = Position()
        self._groups: list[TaskGroup] = []
        self._open_drops: list[tuple[str, str]] = []
        """(reason, group id) since the last completed step."""

    def serve(self) -> None:
        """Consume groups until the last step is done or the stream is closed.

        Raises Stopped when this process has to end before."""
        self._restore()
        self._progress("starting")
        self._publish()
        self._progress("running")
        schedule = self._config.schedule
        with StreamReader(self._run.trajectories, cursor=self._at.cursor) as reader:
            while self._at.step < self._config.run.steps and not reader.closed:
                started = time.monotonic()
                found = reader.next(timeout=_WAIT_S)
                self._at.wait_s += time.monotonic() - started
                self._check()
                if found is None:
                    continue
                tg, cursor = found
                self._at.frames_read += 1
                reason = self._drop_reason(tg)
                if reason is not None:
                    self._open_drops.append((reason, tg.id))
                    self._progress("running")
                    continue
                self._groups.append(tg)
                if len(self._groups) == schedule.groups_per_step:
                    self._step(cursor)
        self._progress("done")

    def _drop_reason(self, tg: TaskGroup) -> str | None:
        if self._at.step - tg.oldest_version > self._config.schedule.max_staleness:
            return "stale"
        return None if any(episode.scored for episode in tg.episodes) else "failed"

    def _step(self, cursor: tuple[int, int]) -> None:
        """One step: as long as the pace says, then checkpoint, publish, steps.jsonl, progress.json."""
        started = time.monotonic()
        while time.monotonic() - started < self._config.learner.pace_s:
            self._check()
            time.sleep(min(_WAIT_S, self._config.learner.pace_s))
        version = self._at.step
        self._at.step += 1
        self._at.cursor = cursor
        self._at.trained_groups += len(self._groups)
        for reason, _ in self._open_drops:
            self._at.dropped[reason] += 1
        dropped = {reason: [name for why, name in self._open_drops if why == reason] for reason in self._at.dropped}
        row = {
            "step": self._at.step,
            "version": self._at.step,
            "cursor": list(cursor),
            "groups": [_trained(tg, version) for tg in self._groups],
            "dropped": dropped,
            "flushed": False,
        }
        self._groups, self._open_drops = [], []
        self._checkpoint(row)
        self._publish()
        self._record(row)
        self._progress("running", time.monotonic() - started)

    # --- files ----------------------------------------------------------------------------------------------------

    def _restore(self) -> None:
        """Go on at the newest checkpoint, if there is one."""
        for directory in (self._run.adapters, self._run.learner):
            for staged in directory.glob(".*.tmp-*"):
                shutil.rmtree(staged) if staged.is_dir() else staged.unlink()
        checkpoints = sorted(self._run.learner.glob("checkpoint-[0-9]*"))
        state = read_json(checkpoints[-1] / "state.json") if checkpoints else None
        if state is None:
            self._checkpoint(None)
            return
        segment, offset = state["position"].pop("cursor")
        self._at = Position(**state["position"], cursor=(segment, offset))
        if state["row"] is not None:
            self._record(state["row"])

    def _checkpoint(self, row: dict[str, Any] | None) -> None:
        target = self._run.learner / f"checkpoint-{self._at.step:05d}"
        state = {"format": FORMAT, "position": asdict(self._at), "row": row}
        write_directory(target, {"state.json": orjson.dumps(state)})
        for old in sorted(self._run.learner.glob("checkpoint-[0-9]*"))[:-2]:
            shutil.rmtree(old)

    def _publish(self) -> None:
        """Publish the version of the last step, unless it is there."""
        version, target = self._at.step, self._run.adapter(self._at.step)
        if target.exists():
            return
        weights = self._files["adapter_model.safetensors"]
        meta = {
            "format": FORMAT,
            "version": version,
            "step": version,
            "parent_version": version - 1,
            "base_model": self._config.model.path,
            "adapter_sha256": hashlib.sha256(weights).hexdigest(),
            "bytes": len(weights),
            "dtype": "float32",
            "r": self._config.learner.rank,
            "alpha": self._config.learner.alpha,
            "target_modules": TARGET_MODULES,
            "cursor": list(self._at.cursor),
            "created_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "simulated": True,
        }
        write_directory(target, {**self._files, "meta.json": orjson.dumps(meta, option=orjson.OPT_INDENT_2)})

    def _record(self, row: dict[str, Any]) -> None:
        """Append a step's row; one that a killed process wrote already is not repeated."""
        path = self._run.learner / "steps.jsonl"
        if any(found["step"] == row["step"] for found in read_lines(path)):
            return
        with JsonLines(path) as file:
            file.append(row)
            file.sync()

    def _progress(self, state: str, step_s: float = 0.0) -> None:
        segment, offset = self._at.cursor
        dropped = dict(self._at.dropped)
        for reason, _ in self._open_drops:
            dropped[reason] += 1
        value = {
            **asdict(self._at),
            "version": self._at.step,
            "cursor": {"segment": segment, "offset": offset},
            "dropped": dropped,
            "waiting": len(self._groups),
            "step_s": step_s,
            "state": state,
            "error": "",
        }
        write_json(self._run.progress, value)

    def _check(self) -> None:
        if not self._alive():
            raise Stopped


def serve(run: RunDir, parent: int | None) -> int:
    """Run the simulated learner of a prepared run directory; returns the exit code."""
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: stopped.append(number))
    signal.signal(signal.SIGINT, lambda number, _frame: stopped.append(number))

    def alive() -> bool:
        return not stopped and (parent is None or os.getppid() == parent)

    try:
        SimulatedLearner(run, load(run.config).config, alive).serve()
    except Stopped:
        return 0
    return 0


def _trained(tg: TaskGroup, version: int) -> dict[str, Any]:
    """A group as steps.jsonl tells it: every scored episode has the advantage 0."""
    advantages = [0.0 if episode.scored else None for episode in tg.episodes]
    return {"id": tg.id, "advantages": advantages, "staleness": version - tg.oldest_version}
