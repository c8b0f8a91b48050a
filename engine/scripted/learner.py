"""A learner that trains nothing: takes groups in arrival order, at a set pace, and publishes zero adapters.

It keeps the file contracts of the real one (docs/learner.md 5): order of a step is checkpoint, publish, steps.jsonl,
progress.json; a restart goes on at the checkpoint's cursor, so no group is trained twice. It drops only groups that
are too stale or have no scored episode.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import orjson

from engine.config.load import load
from engine.config.tree import Config
from engine.learnerdir.adapter import AdapterMeta, write_adapter
from engine.learnerdir.checkpoint import STATE_FILE, CheckpointState, read_checkpoint
from engine.learnerdir.counters import DropReason, LearnerCounters
from engine.learnerdir.progress import LearnerProgress, LearnerState, write_progress
from engine.learnerdir.steps import TrainedGroup, TrainedStep, read_steps
from engine.rundir.layout import RUN_FORMAT, JsonLines, RunDir, write_directory
from engine.scripted.zero_adapter import zero_adapter
from engine.stream.integrity import RecordsPart, require_complete
from engine.stream.reader import StreamReader
from engine.types import EpisodeGroup

_WAIT_S = 0.2


class Stopped(Exception):  # noqa: N818 - flow control, not a failure
    """SIGTERM, or the parent is gone."""


class SimulatedLearner:
    """The process of one run; `run_scripted_learner` is the only entry."""

    def __init__(self, run: RunDir, config: Config, alive: Callable[[], bool]) -> None:
        self._run, self._config, self._alive = run, config, alive
        self._files = zero_adapter(Path(config.model.path), config.learner.rank, config.learner.alpha)
        self._at = LearnerCounters()
        self._groups: list[EpisodeGroup] = []
        self._read = 0
        """Groups taken since the last completed step."""
        self._dropped: dict[DropReason, list[str]] = {}
        """Ids of the groups dropped since then."""

    def serve(self) -> None:
        """Consume groups until the last step is done or the stream is closed.

        Raises Stopped when this process has to end before."""
        self._restore()
        self._progress(LearnerState.STARTING)
        self._publish()
        self._progress(LearnerState.RUNNING)
        schedule = self._config.schedule
        with StreamReader(self._run.trajectories, cursor=self._at.cursor) as reader:
            while self._at.step < self._config.run.steps and not reader.closed:
                started = time.monotonic()
                found = reader.next(timeout=_WAIT_S)
                self._at = replace(self._at, wait_s=self._at.wait_s + time.monotonic() - started)
                self._check()
                if found is None:
                    continue
                group, cursor = found
                self._read += 1
                reason = self._drop_reason(group)
                if reason is not None:
                    self._dropped.setdefault(reason, []).append(group.id)
                    self._progress(LearnerState.RUNNING)
                    continue
                self._groups.append(group)
                if len(self._groups) == schedule.groups_per_step:
                    self._step(cursor)
        self._progress(LearnerState.DONE)

    def _drop_reason(self, group: EpisodeGroup) -> DropReason | None:
        if self._at.step - group.oldest_version > self._config.schedule.max_staleness:
            return DropReason.STALE
        return None if any(episode.scored for episode in group.episodes) else DropReason.FAILED

    def _step(self, cursor: tuple[int, int]) -> None:
        """One step: as long as the pace says, then checkpoint, publish, steps.jsonl, progress.json."""
        started = time.monotonic()
        while time.monotonic() - started < self._config.learner.pace_s:
            self._check()
            time.sleep(min(_WAIT_S, self._config.learner.pace_s))
        version = self._at.step
        self._at = self._counted().after(len(self._groups), cursor, 0.0)
        trained = TrainedStep(
            step=self._at.step,
            version=self._at.version,
            cursor=cursor,
            groups=tuple(_trained(group, version) for group in self._groups),
            dropped={str(reason): self._dropped.get(reason, []) for reason in DropReason},
        )
        self._groups, self._dropped, self._read = [], {}, 0
        self._checkpoint(trained)
        self._publish()
        self._record(trained)
        self._progress(LearnerState.RUNNING, time.monotonic() - started)

    # --- files ----------------------------------------------------------------------------------------------------

    def _restore(self) -> None:
        """Go on at the newest checkpoint, if there is one."""
        for directory in (self._run.adapters, self._run.learner):
            for staged in directory.glob(".*.tmp-*"):
                shutil.rmtree(staged) if staged.is_dir() else staged.unlink()
        steps = self._run.checkpoints()
        if not steps:
            self._checkpoint(None)
            return
        require_complete(self._run, RecordsPart.TRAINING, RecordsPart.STEPS)
        state = read_checkpoint(self._run, steps[-1])
        self._at = state.counters
        if state.trained is not None:
            self._record(state.trained)

    def _checkpoint(self, trained: TrainedStep | None) -> None:
        state = {"format": RUN_FORMAT, **CheckpointState(counters=self._at, trained=trained).simulated_value()}
        write_directory(self._run.checkpoint(self._at.step), {STATE_FILE: orjson.dumps(state)})
        for old in self._run.checkpoints()[:-2]:
            shutil.rmtree(self._run.checkpoint(old))

    def _publish(self) -> None:
        """Publish the version of the last step, unless it is there."""
        version = self._at.step
        if self._run.adapter(version).exists():
            return
        weights = self._files["adapter_model.safetensors"]
        meta = AdapterMeta(
            step={
                "version": version,
                "step": version,
                "parent_version": version - 1,
                "cursor": list(self._at.cursor),
            },
            base={"base_model": self._config.model.path},
            dtype="float32",
            rank=self._config.learner.rank,
            alpha=self._config.learner.alpha,
        )
        write_adapter(self._run, version, self._files, meta.simulated_value(weights))

    def _record(self, trained: TrainedStep) -> None:
        """Append a step's row; one that a killed process wrote already is not repeated."""
        if any(found.step == trained.step for found in read_steps(self._run)):
            return
        with JsonLines(self._run.steps) as file:
            file.append(trained.value())
            file.sync()

    def _counted(self) -> LearnerCounters:
        """The counters with what was read and dropped since the last completed step."""
        return self._at.with_open(self._read, self._dropped)

    def _progress(self, state: LearnerState, step_s: float = 0.0) -> None:
        told = LearnerProgress(counters=self._counted(), waiting=len(self._groups), step_s=step_s, state=state)
        write_progress(self._run, told)

    def _check(self) -> None:
        if not self._alive():
            raise Stopped


def run_scripted_learner(run: RunDir, parent: int | None) -> int:
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


def _trained(group: EpisodeGroup, version: int) -> TrainedGroup:
    """A group as steps.jsonl tells it: every scored episode has the advantage 0."""
    advantages = tuple(0.0 if episode.scored else None for episode in group.episodes)
    return TrainedGroup(id=group.id, advantages=advantages, staleness=version - group.oldest_version)
