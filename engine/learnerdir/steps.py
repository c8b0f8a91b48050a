"""learner/steps.jsonl: one row a step, never more rows than checkpoints cover."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from engine.errors import RunError
from engine.learnerdir import RESTORE, UNUSABLE
from engine.rundir.layout import RunDir, read_lines


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedGroup:
    """A group of a row of steps.jsonl."""

    id: str
    advantages: tuple[float | None, ...]
    """In the order of the episodes; None where masked."""
    staleness: int
    """Learner version - oldest version of any episode."""
    tokens: int | None = None
    """Policy tokens that it trained; a simulated learner says none."""

    def value(self) -> dict[str, Any]:
        """Returns it as JSON."""
        value = {"id": self.id, "advantages": list(self.advantages), "staleness": self.staleness}
        return value if self.tokens is None else {**value, "tokens": self.tokens}

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Self:
        """Reads what `value` returns.

        Raises KeyError, TypeError or ValueError for another shape."""
        return cls(
            id=str(value["id"]),
            advantages=tuple(None if number is None else float(number) for number in value["advantages"]),
            staleness=int(value["staleness"]),
            tokens=value.get("tokens"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedStep:
    """A row of steps.jsonl."""

    step: int
    version: int
    """Published by the step."""
    cursor: tuple[int, int]
    """(segment, offset) after the step's last group."""
    groups: tuple[TrainedGroup, ...]
    dropped: Mapping[str, Sequence[str]]
    """Ids of the groups dropped since the step before, by reason."""
    staleness_tokens: Mapping[str, int] | None = None
    """Policy tokens by staleness; a simulated learner says none."""
    flushed: bool = False
    """Whether it is the smaller last step of a closed stream."""

    @property
    def used(self) -> tuple[str, ...]:
        """Ids of the groups that it trained or dropped."""
        return (*(group.id for group in self.groups), *(id_ for ids in self.dropped.values() for id_ in ids))

    def value(self) -> dict[str, Any]:
        """Returns it as JSON."""
        tokens = {} if self.staleness_tokens is None else {"staleness_tokens": dict(self.staleness_tokens)}
        return {
            "step": self.step,
            "version": self.version,
            "cursor": list(self.cursor),
            "groups": [group.value() for group in self.groups],
            "dropped": dict(self.dropped),
            **tokens,
            "flushed": self.flushed,
        }

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Self:
        """Reads what `value` returns; an older version did not say version, cursor and what it dropped.

        Raises KeyError, TypeError or ValueError for another shape."""
        segment, offset = value.get("cursor", (0, 0))
        return cls(
            step=int(value["step"]),
            version=int(value.get("version", value["step"])),
            cursor=(int(segment), int(offset)),
            groups=tuple(TrainedGroup.of(group) for group in value["groups"]),
            dropped={str(reason): tuple(map(str, ids)) for reason, ids in value.get("dropped", {}).items()},
            staleness_tokens=value.get("staleness_tokens"),
            flushed=bool(value.get("flushed", False)),
        )


def read_steps(run: RunDir) -> Iterator[TrainedStep]:
    """Yields the rows of steps.jsonl; a torn last one is ignored, and there are none before the first step.

    Raises RunError that names the line for one that is no step."""
    for number, row in enumerate(read_lines(run.steps), 1):
        try:
            step = TrainedStep.of(row)
        except UNUSABLE as error:
            raise RunError(f"{run.steps}: line {number} is no step of a learner ({error!r}); {RESTORE}") from error
        yield step
