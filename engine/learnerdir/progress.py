"""learner/progress.json: the learner's only word to engine, supervisor and viewers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self

from engine.errors import RunError
from engine.learnerdir import RESTORE, UNUSABLE
from engine.learnerdir.counters import LearnerCounters
from engine.rundir.layout import RunDir, read_json, write_json


class LearnerState(StrEnum):
    """What the learner is doing."""

    STARTING = "starting"
    """Loading; version 0 or the checkpoint's version may not be published yet."""
    RUNNING = "running"
    """Reading and training."""
    DONE = "done"
    """The last step is trained, or the stream is closed; the process ends with 0."""
    FAILED = "failed"
    """It cannot go on; `error` says why in one sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerProgress:
    """learner/progress.json; in every version of it, ``trained_groups + sum(dropped) + waiting = frames_read``."""

    counters: LearnerCounters = field(default_factory=LearnerCounters)
    """The open step's reads and drops are counted; `cursor` is the end of the last completed step."""
    waiting: int = 0
    """Usable groups of the open step."""
    step_s: float = 0.0
    """How long the last step took to train, save and publish."""
    state: LearnerState = LearnerState.STARTING
    error: str = ""

    def value(self) -> dict[str, Any]:
        """Returns it as JSON, where the cursor is an object."""
        segment, offset = self.counters.cursor
        return {
            **self.counters.value(),
            "cursor": {"segment": segment, "offset": offset},
            "waiting": self.waiting,
            "step_s": self.step_s,
            "state": self.state,
            "error": self.error,
        }

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Self:
        """Reads what `value` returns; what is not said yet is zero.

        Raises KeyError, TypeError or ValueError for another shape."""
        cursor = value.get("cursor", {"segment": 0, "offset": 0})
        counters = {**LearnerCounters().value(), **value, "cursor": (cursor["segment"], cursor["offset"])}
        return cls(
            counters=LearnerCounters.of(counters),
            waiting=int(value.get("waiting", 0)),
            step_s=float(value.get("step_s", 0.0)),
            state=LearnerState(value.get("state", LearnerState.STARTING)),
            error=str(value.get("error", "")),
        )


def read_progress(run: RunDir) -> LearnerProgress:
    """Returns what the learner said last; zeros before its first word.

    Raises RunError for a file that is no progress.json."""
    value = read_json(run.progress)
    try:
        return LearnerProgress() if value is None else LearnerProgress.of(value)
    except UNUSABLE as error:
        raise RunError(f"{run.progress}: not the progress of a learner ({error!r}); {RESTORE}") from error


def write_progress(run: RunDir, progress: LearnerProgress) -> None:
    """Replaces progress.json.

    Raises RunError if the disk does not take it."""
    write_json(run.progress, progress.value())
