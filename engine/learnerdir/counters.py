"""Where a learner is after a step, and why it drops groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Self


class DropReason(StrEnum):
    """Why a group is not trained on; the first that applies."""

    STALE = "stale"
    """Its oldest episode is more than max_staleness versions behind."""
    UNSCORED = "unscored"
    """Too few scored episodes, and the judge failed on some."""
    FAILED = "failed"
    """Too few scored episodes."""
    ZERO_VARIANCE = "zero_variance"
    """All rewards are equal: no episode is better than its siblings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerCounters:
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

    @property
    def dropped_groups(self) -> int:
        """Groups dropped for any reason."""
        return sum(self.dropped.values())

    def with_open(self, read: int, dropped: Mapping[DropReason, Sequence[str]]) -> Self:
        """Returns the counters with the groups that were read and dropped since the last completed step."""
        counts = {reason: count + len(dropped.get(DropReason(reason), ())) for reason, count in self.dropped.items()}
        return replace(self, frames_read=self.frames_read + read, dropped=counts)

    def after(self, trained: int, cursor: tuple[int, int], wait_s: float) -> Self:
        """Returns the counters after a step more, which trained so many groups; `with_open` comes before."""
        return replace(
            self,
            step=self.step + 1,
            version=self.version + 1,
            cursor=cursor,
            trained_groups=self.trained_groups + trained,
            wait_s=self.wait_s + wait_s,
        )

    def value(self) -> dict[str, Any]:
        """Returns them as JSON."""
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
        """Reads what `value` returns; every counter must be there.

        Raises KeyError, TypeError or ValueError for another shape."""
        segment, offset = value["cursor"]
        return cls(
            step=int(value["step"]),
            version=int(value["version"]),
            cursor=(int(segment), int(offset)),
            frames_read=int(value["frames_read"]),
            trained_groups=int(value["trained_groups"]),
            dropped={str(reason): int(count) for reason, count in value["dropped"].items()},
            wait_s=float(value["wait_s"]),
        )
