"""learner/progress.json: the learner's only word to the engine.

In every version of the file, ``trained_groups + sum(dropped) + waiting = frames_read``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self

from engine.rundir.layout import RunDir, write_json
from learner.forming import DropReason, OpenStep


class State(StrEnum):
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
class Counters:
    """Where the learner is after its last completed step."""

    step: int = 0
    version: int = 0
    cursor: tuple[int, int] = (0, 0)
    """(segment, offset) after the step's last group."""
    frames_read: int = 0
    trained_groups: int = 0
    dropped: Mapping[str, int] = field(default_factory=lambda: {str(reason): 0 for reason in DropReason})
    """Groups dropped, by reason."""
    wait_s: float = 0.0
    """Time spent waiting for groups, over the whole run."""

    def after(self, opened: OpenStep, cursor: tuple[int, int], wait_s: float) -> Counters:
        """The counters once the open step is trained."""
        return Counters(
            step=self.step + 1,
            version=self.version + 1,
            cursor=cursor,
            frames_read=self.frames_read + opened.read,
            trained_groups=self.trained_groups + len(opened.usable),
            dropped=self.with_dropped(opened),
            wait_s=self.wait_s + wait_s,
        )

    def with_dropped(self, opened: OpenStep) -> dict[str, int]:
        """Drops by reason, those of the open step included."""
        return {
            reason: count + len(opened.dropped.get(DropReason(reason), [])) for reason, count in self.dropped.items()
        }

    def value(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "step": self.step,
            "version": self.version,
            "cursor": list(self.cursor),
            "frames_read": self.frames_read,
            "trained_groups": self.trained_groups,
            "dropped": dict(self.dropped),
            "wait_s": self.wait_s,
        }

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Self:
        """From `value()`."""
        segment, offset = value["cursor"]
        return cls(**{**value, "cursor": (segment, offset)})


def write_progress(
    run: RunDir, counters: Counters, opened: OpenStep, *, state: State, step_s: float = 0.0, error: str = ""
) -> None:
    """Replace progress.json.

    ``cursor`` is the end of the last completed step; ``waiting`` are the usable groups of the open step; ``step_s`` is
    how long the last step took to train, save and publish."""
    segment, offset = counters.cursor
    write_json(
        run.progress,
        {
            **counters.value(),
            "cursor": {"segment": segment, "offset": offset},
            "dropped": counters.with_dropped(opened),
            "waiting": len(opened.usable),
            "frames_read": counters.frames_read + opened.read,
            "step_s": step_s,
            "state": state,
            "error": error,
        },
    )
