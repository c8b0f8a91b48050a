"""The seams of an episode: what the core asks of a policy, a world, a user and a scorer.

At most three methods each, all async. The real implementations live in engine.policy, engine.world and
engine.reward; the scripted ones, for tests, benches and dry runs, in engine.scripted. A
configuration names others as `package:Object`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from sys import intern
from typing import Any, Protocol, TypeVar

from engine.core.live import LiveEpisodes
from engine.schema.recordable import UnrecordableError, recorded, recorded_text
from engine.task import Task
from engine.types import (
    ChatMessage,
    Completion,
    Episode,
    Event,
    Json,
    Limits,
    Observation,
    Reply,
    Reward,
    Sampling,
    StopReason,
    ToolCall,
    Turn,
    Verdict,
)

_T = TypeVar("_T", Observation, Reply, Reward)


class Policy(Protocol):
    """Continues a turn."""

    async def complete(self, turn: Turn) -> Completion:
        """Sample one completion.

        Raises PolicyError after its own retries."""
        ...


class Session(Protocol):
    """One episode's view of a world."""

    async def call(self, call: ToolCall) -> Observation:
        """Answer one call; a wrong call is an observation with ok false, never an exception.

        Raises ToolError if the simulator failed."""
        ...

    async def close(self) -> Json:
        """End the session; returns the final state (JSON)."""
        ...


class World(Protocol):
    """Opens sessions on a task's mock tools."""

    async def open(self, task: Task, seed: int) -> Session:
        """A fresh session in the task's initial state."""
        ...


class UserSession(Protocol):
    """One episode's user."""

    async def reply(self, message: str) -> Reply:
        """Answer the agent.

        Raises UserError if the simulator failed."""
        ...


class User(Protocol):
    """Opens user sessions."""

    async def open(self, task: Task, seed: int, session: Session) -> UserSession:
        """A user with the task's private context; ``session`` lets a user see or change the world."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringRecord:
    """What a scorer sees of an episode."""

    task: Task
    messages: Sequence[ChatMessage]
    events: Sequence[Event]
    final_state: Any
    stop: StopReason

    @classmethod
    def of(cls, task: Task, episode: Episode) -> ScoringRecord:
        """Returns what a scorer saw of a recorded episode."""
        return cls(
            task=task,
            messages=episode.messages,
            events=episode.events,
            final_state=episode.final_state,
            stop=episode.stop,
        )


class Scorer(Protocol):
    """Turns what the agent did into a reward."""

    async def score(self, record: ScoringRecord) -> Reward:
        """Score one finished episode.

        Raises RewardError if the judge failed: the episode is then unscored."""
        ...


class Chat(Protocol):
    """The part of engine.chat.chat_format.ChatFormat that an episode uses."""

    def prompt(self, task: Task) -> tuple[Sequence[ChatMessage], Sequence[int], Sequence[Mapping[str, Any]]]:
        """Messages, ids and tools of the first turn."""
        ...

    def observation(self, messages: Sequence[ChatMessage], stop_sampled: bool) -> Sequence[int]:  # noqa: FBT001
        """The ids that these messages add after a completion."""
        ...

    def ended(self, ids: Sequence[int]) -> bool:
        """Whether the last sampled id ends a turn."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Seams:
    """What every episode of a run shares."""

    policy: Policy
    world: World
    user: User
    scorer: Scorer
    chat: Chat
    clock: Callable[[], float]
    """Seconds on the run's clock."""
    live: LiveEpisodes[Any] | None = None
    """Where episodes are seen (as engine.core.ledger.Ledger) while they are played; None where nobody can look."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodePlan:
    """One episode to run."""

    id: str
    group_id: str
    task: Task
    seed: int
    version: int
    adapter: str | None
    limits: Limits
    sampling: Sampling
    queued_s: float
    """When its group was admitted, on the run's clock."""


def returned(value: object, kind: type[_T]) -> _T:
    """What a session, a user or a scorer returned, as the record holds it; somebody's own may return anything.

    Raises TypeError or ValueError for what no record can hold (engine.schema.recordable)."""
    if not isinstance(value, kind):
        raise TypeError(f"returned {type(value).__name__}, not engine.types.{kind.__name__}")
    try:
        plain: _T = _PLAIN[kind](value)
    except UnrecordableError as error:
        raise ValueError(f"the {kind.__name__}: {error}") from error
    return plain


def _observation(given: Observation) -> Observation:
    return Observation(content=recorded_text(given.content), ok=bool(given.ok))


def _reply(given: Reply) -> Reply:
    if not isinstance(given.revealed, list | tuple):
        raise TypeError(f"what the Reply revealed is {type(given.revealed).__name__}, not a tuple of names")
    return Reply(text=recorded_text(given.text), revealed=tuple(recorded(list(given.revealed))), done=bool(given.done))


def _reward(given: Reward) -> Reward:
    # Nearly every reward is what our own scorer made; the general way costs as much as a turn of the loop.
    if type(given) is Reward and type(given.items) is tuple and _finite(given) and all(map(_as_it_is, given.items)):
        return given
    numbers = recorded({"value": given.value, "F": given.F, "N": given.N, "I": given.I})
    for name, number in numbers.items():
        if not isinstance(number, int | float):
            raise TypeError(f"the {name} of the Reward is {type(number).__name__}, not a number")
    if not isinstance(given.items, list | tuple) or not all(isinstance(item, Verdict) for item in given.items):
        raise TypeError("the items of the Reward are not all engine.types.Verdict")
    fields = [
        {"id": item.id, "part": item.part, "met": item.met, "evidence": item.evidence, "by": item.by}
        for item in given.items
    ]
    held = recorded({"items": fields})["items"]
    # Equal texts of many verdicts are one: a run holds thousands of them until their groups are whole.
    return Reward(**numbers, items=tuple(Verdict(**{**item, **_one_text(item)}) for item in held))


def _finite(reward: Reward) -> bool:
    numbers = (reward.value, reward.F, reward.N, reward.I)
    return all(type(number) is float and isfinite(number) for number in numbers)


def _as_it_is(item: Verdict) -> bool:
    """Whether a verdict is plain at a glance, so that the record gives it back as it is; False says nothing."""
    kinds = (type(item), type(item.id), type(item.part), type(item.met), type(item.by))
    evidence = item.evidence
    return (
        kinds == _VERDICT_KINDS
        and (item.id + item.part + item.by).isascii()
        and (evidence is None or (type(evidence) is int and 0 <= evidence < 1 << 63))
    )


_VERDICT_KINDS = (Verdict, str, str, bool, str)


def _one_text(item: Mapping[str, Any]) -> dict[str, Any]:
    return {name: intern(value) for name, value in item.items() if isinstance(value, str)}


_PLAIN: Mapping[type, Callable[[Any], Any]] = {Observation: _observation, Reply: _reply, Reward: _reward}
