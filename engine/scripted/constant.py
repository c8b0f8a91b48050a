"""A world, a user and a scorer that always say the same."""

from __future__ import annotations

from engine.core.seams import ScoringRecord, Session
from engine.task import Task
from engine.types import Json, Observation, Reply, Reward, ToolCall


class ConstantSession:
    """Answers every call with `{"status":"ok"}`."""

    async def call(self, call: ToolCall) -> Observation:  # noqa: ARG002 - the seam's
        """The same observation, whatever is called."""
        return Observation(content='{"status":"ok"}', ok=True)

    async def close(self) -> Json:
        """An empty state."""
        return {}


class ConstantWorld:
    """Opens constant sessions."""

    async def open(self, task: Task, seed: int) -> ConstantSession:  # noqa: ARG002 - the seam's
        """A session that needs no task."""
        return ConstantSession()


class ConstantUserSession:
    """Answers every message with the same words, and never leaves."""

    async def reply(self, message: str) -> Reply:  # noqa: ARG002 - the seam's
        """The same reply, whatever is said."""
        return Reply(text="Please go on.")


class ConstantUser:
    """Opens constant users."""

    async def open(self, task: Task, seed: int, session: Session) -> ConstantUserSession:  # noqa: ARG002 - the seam's
        """A user that knows nothing."""
        return ConstantUserSession()


class ConstantScorer:
    """Gives every episode the reward 1."""

    async def score(self, record: ScoringRecord) -> Reward:  # noqa: ARG002 - the seam's
        """The same reward, whatever was done."""
        return Reward(value=1.0, F=1.0, N=1.0, I=1.0)
