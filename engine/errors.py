"""Errors, named for the boundary crossed, and the one place that classifies them.

*A bad episode is data, not a crash*: everything below :class:`EpisodeError` ends one episode with a typed outcome;
:class:`ConfigError` and :class:`RunError` end the run with one clear sentence. To add one, subclass the boundary it
belongs to; give it a message that names the thing, the place and the remedy.
"""

from __future__ import annotations

import math
from types import TracebackType

import anyio

from engine.types import Outcome, StopReason


class SynthError(Exception):
    """Root of every error that this project raises on purpose."""


class ConfigError(SynthError):
    """A configuration, task pack or command line that cannot be used as it is; nothing was started."""


class RunError(SynthError):
    """The run cannot go on; what was acknowledged is kept, and `--resume` continues."""


class EpisodeError(SynthError):
    """Ends one episode; `outcome` and `stop` say how it is recorded."""

    outcome = Outcome.INFRA_ERROR
    stop = StopReason.POLICY_ERROR


class PolicyError(EpisodeError):
    """The policy server failed after its retries."""


class WallClockError(EpisodeError):
    """The episode's deadline passed."""

    stop = StopReason.WALL_CLOCK


class StaleError(EpisodeError):
    """The episode's pinned adapter fell too far behind."""

    stop = StopReason.STALE


class ToolError(EpisodeError):
    """The tool simulator failed after its retries; never shown to the policy as tool text."""

    outcome = Outcome.TOOL_FAULT
    stop = StopReason.TOOL_ERROR


class UserError(EpisodeError):
    """The user simulator failed after its retries."""

    outcome = Outcome.USER_FAULT
    stop = StopReason.USER_ERROR


class RewardError(EpisodeError):
    """The scorer failed after its retries: the episode is unscored."""

    outcome = Outcome.JUDGE_FAULT
    stop = StopReason.ANSWER


class LimitReached(EpisodeError):  # noqa: N818 - flow control, not a failure
    """A turn or token limit: flow control, scored on what was done."""

    def __init__(self, stop: StopReason) -> None:
        super().__init__(f"limit reached: {stop}")
        self.stop = stop


class boundary:  # noqa: N801 - used as a statement: async with boundary(ToolError, "get_order")
    """Classify whatever goes wrong inside as `kind`, naming `what` was being done; with a deadline of `limit_s`.

    Errors of this project pass unchanged (they crossed an inner boundary already), and so does cancellation from
    outside. A class, and one cancel scope for both jobs: it is entered several times a turn."""

    __slots__ = ("_kind", "_limit_s", "_scope", "_what")

    def __init__(self, kind: type[EpisodeError], what: str, limit_s: float = math.inf) -> None:
        self._kind, self._what, self._limit_s = kind, what, limit_s

    async def __aenter__(self) -> None:
        self._scope: anyio.CancelScope | None = None
        if self._limit_s < math.inf:
            self._scope = anyio.CancelScope(deadline=anyio.current_time() + self._limit_s)
            self._scope.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._scope is not None:
            self._scope.__exit__(kind, error, tb)
            if self._scope.cancelled_caught:
                raise self._kind(f"{self._what}: no answer within {self._limit_s:g} s")
        if isinstance(error, Exception) and not isinstance(error, SynthError):
            raise self._kind(f"{self._what}: {type(error).__name__}: {error}") from error
