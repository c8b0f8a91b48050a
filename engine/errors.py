"""Errors, named for the boundary crossed, and the one place that classifies them.

*A bad episode is data, not a crash*: everything below :class:`EpisodeError` ends one episode with a typed outcome;
:class:`ConfigError` and :class:`RunError` end the run with one clear sentence. To add one, subclass the boundary it
belongs to; give it a message that names the thing, the place and the remedy.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

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


@asynccontextmanager
async def boundary(kind: type[EpisodeError], what: str) -> AsyncIterator[None]:
    """Classify whatever goes wrong inside as `kind`, naming `what` was being done.

    Errors of this project pass unchanged (they crossed an inner boundary already); cancellation is never caught."""
    try:
        yield
    except SynthError:
        raise
    except Exception as error:
        raise kind(f"{what}: {type(error).__name__}: {error}") from error
