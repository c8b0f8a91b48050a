"""Errors, named for the boundary crossed, and the one place that classifies them.

*A bad episode is data, not a crash*: everything below :class:`EpisodeError` ends one episode with a typed outcome;
:class:`ConfigError` and :class:`RunError` end the run with one clear sentence. To add one, subclass the boundary it
belongs to; give it a message that names the thing, the place and the remedy.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from traceback import TracebackException
from types import TracebackType
from typing import Self, TypeVar

import anyio
from anyio.abc import TaskGroup

from engine.types import Outcome, StopReason

_Error = TypeVar("_Error", bound=BaseException)


def leaf_errors(group: BaseExceptionGroup[_Error]) -> Iterator[_Error]:
    """The errors inside a group, however nested."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from leaf_errors(error)
        else:
            yield error


class SynthError(Exception):
    """Root of every error that this project raises on purpose."""


class ConfigError(SynthError):
    """A configuration, task pack or command line that cannot be used as it is; nothing was started."""


class RunError(SynthError):
    """The run cannot go on; what was acknowledged is kept, and `--resume` continues."""


class IncompleteError(RunError):
    """The records of a run lack what its other files say there must be; nothing was started or changed."""


class EpisodeError(SynthError):
    """Ends one episode; `outcome` and `stop` say how it is recorded."""

    stop = StopReason.POLICY_ERROR

    @property
    def outcome(self) -> Outcome:
        """Whose doing the end was; outside of a conversation nothing ends well."""
        return self.stop.masked or Outcome.INFRA_ERROR


class PolicyError(EpisodeError):
    """The policy server failed after its retries."""


class WallClockError(EpisodeError):
    """The episode's deadline passed."""

    stop = StopReason.WALL_CLOCK


class StaleError(EpisodeError):
    """The episode's pinned adapter fell too far behind."""

    stop = StopReason.STALE


class CancelError(EpisodeError):
    """An operator ended the episode."""

    stop = StopReason.CANCELLED


class ToolError(EpisodeError):
    """The tool simulator failed after its retries; never shown to the policy as tool text."""

    stop = StopReason.TOOL_ERROR


class UserError(EpisodeError):
    """The user simulator failed after its retries."""

    stop = StopReason.USER_ERROR


class RewardError(EpisodeError):
    """The scorer failed after its retries: the episode is unscored, and stopped for the reason that it had before."""

    @property
    def outcome(self) -> Outcome:
        """The judge's."""
        return Outcome.JUDGE_FAULT


class Ended(EpisodeError):  # noqa: N818 - flow control, not a failure
    """The conversation is over, for a reason with which it is scored on what was done."""

    def __init__(self, stop: StopReason) -> None:
        super().__init__(f"the conversation ended: {stop}")
        self.stop = stop


@dataclass(slots=True)
class Deadline:
    """The time limits of one episode: `step_s` for the step under way, `wall_s` for all of it; used as a statement.

    One scope and one timer for a whole episode: a scope with a deadline of its own around every completion, call and
    reply is a fifth of what an episode costs. The timer is lazy: it looks when something may be overdue, and again when
    that turns out to have begun later. In place of the cancellation comes the error of the boundary that was being
    crossed, WallClockError, or what `cancel` was told."""

    what: str
    step_s: float
    wall_s: float
    _scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    _timer: asyncio.TimerHandle = field(init=False)
    _wall_due: float = field(init=False)
    _step: tuple[type[EpisodeError], str, float] | None = None
    """Who is to be blamed if the step under way is not over when it is due, what it does, and when that is."""
    _missed: EpisodeError | None = None

    def __enter__(self) -> Self:
        self._scope.__enter__()
        self._wall_due = time.monotonic() + self.wall_s
        self._look_in(min(self.step_s, self.wall_s))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> bool | None:
        self._timer.cancel()
        swallowed = self._scope.__exit__(kind, error, tb)
        if self._missed is not None and self._scope.cancelled_caught:
            raise self._missed
        return swallowed

    def begin(self, kind: type[EpisodeError], what: str) -> None:
        """A step begins."""
        self._step = kind, what, time.monotonic() + self.step_s

    def end(self) -> None:
        """The step is over; what follows has the wall clock only."""
        self._step = None

    def cancel(self, error: EpisodeError) -> None:
        """End the episode with `error` now, unless it is ending already."""
        if self._missed is None:
            self._timer.cancel()
            self._missed = error
            self._scope.cancel()

    def _look_in(self, seconds: float) -> None:
        # The end of the block cancels it.
        self._timer = asyncio.get_running_loop().call_later(seconds, self._look)

    def _look(self) -> None:
        now = time.monotonic()
        kind, what, due = self._step or (WallClockError, "", math.inf)
        if now >= min(due, self._wall_due):
            late = due < self._wall_due
            message = (
                f"{what}: no answer within {self.step_s:g} s" if late else f"{self.what}: {self.wall_s:g} s passed"
            )
            self._missed = kind(message) if late else WallClockError(message)
            self._scope.cancel()
        else:
            # A step that begins right after this look is due `step_s` from now at the earliest.
            self._look_in(min(due - now, self._wall_due - now, self.step_s))


def text_of(error: Exception) -> str:
    """Returns `str(error)`; `<exception str() failed>` where the error's class, which may be anyone's, raises there."""
    return str(TracebackException(type(error), error, None, limit=0, lookup_lines=False))


class boundary:  # noqa: N801 - used as a statement: async with boundary(ToolError, "get_order")
    """Classify whatever goes wrong inside as `kind`, naming `what` was being done; it is a step of `deadline`.

    Errors of this project pass unchanged (they crossed an inner boundary already), and so does cancellation. A class,
    not a generator: it is entered several times a turn."""

    __slots__ = ("_deadline", "_kind", "_what")

    def __init__(self, kind: type[EpisodeError], what: str, deadline: Deadline | None = None) -> None:
        self._kind, self._what, self._deadline = kind, what, deadline

    async def __aenter__(self) -> None:
        if self._deadline is not None:
            self._deadline.begin(self._kind, self._what)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.leave(error)

    def leave(self, error: BaseException | None) -> None:
        """The block ended, with `error` or without.

        Raises the classified error in its place."""
        if self._deadline is not None:
            self._deadline.end()
        if isinstance(error, Exception) and not isinstance(error, SynthError):
            raise self._kind(f"{self._what}: {type(error).__name__}: {text_of(error)}") from error


class owned_tasks:  # noqa: N801 - used as a statement: async with owned_tasks() as tasks
    """A task group that ends with its block: its tasks are cancelled then, and one that fails cancels the block.

    An error of the block alone comes out as it is, not wrapped in a group, so that whoever opens a resource need not
    know that it has tasks of its own. What a task raised comes out in a group, as of any task group."""

    __slots__ = ("_tasks",)

    def __init__(self) -> None:
        self._tasks: TaskGroup | None = None

    async def __aenter__(self) -> TaskGroup:
        self._tasks = anyio.create_task_group()
        return await self._tasks.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> bool | None:
        assert self._tasks is not None, "use `async with owned_tasks()`"
        self._tasks.cancel_scope.cancel()
        try:
            return await self._tasks.__aexit__(kind, error, tb)
        except BaseExceptionGroup as group:
            if error is None or group.exceptions != (error,):
                raise
        return False
