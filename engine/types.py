"""The values that cross seams.

Everything here is a frozen value: no I/O, no behaviour beyond derived properties. Ids render to strings
and join across frames, request ids, logs and the dashboard (docs/architecture.md)::

    run      demo-1f0c2a9b                adapter  demo-1f0c2a9b-v00012   (directory adapters/v00012)
    group    g000178  (sampler position)  episode  g000178.03             turn  g000178.03@09
    evaluation groups start with "e": e00040-0012 is task 12 of the evaluation of version 40.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, Self

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Json = Any
"""A JSON value (object, array, string, number, boolean or null)."""
ChatMessage = Mapping[str, Any]
"""One message of a chat, as templates and endpoints take it: `role`, `content`, what else the role has."""


Phase = Literal["queued", "policy", "tool", "user", "scoring"]
"""What an episode in flight waits for, in the order of a turn."""


GROUP_ID = r"(?:g\d{6}|e\d{5}-\d{4})"
"""What ids of training groups and of evaluated tasks look like."""
EPISODE_ID = rf"{GROUP_ID}\.\d\d"


class Outcome(StrEnum):
    """Whose doing the end of an episode was; only the first two make rewards (invariant *trusted-reward*)."""

    AGENT_OK = "agent_ok"
    """The rubric gave reward 1."""
    AGENT_FAIL = "agent_fail"
    """The rubric gave less than 1."""
    USER_FAULT = "simulator_fault_user"
    """The user simulator failed after retries; masked."""
    TOOL_FAULT = "simulator_fault_tool"
    """The tool simulator failed after retries; masked."""
    JUDGE_FAULT = "simulator_fault_judge"
    """The judge failed after retries: the episode is unscored; masked."""
    INFRA_ERROR = "infra_error"
    """Policy server, wall clock, or an operator's cancel; masked."""

    @property
    def scored(self) -> bool:
        """Whether the episode has a reward."""
        return self in (Outcome.AGENT_OK, Outcome.AGENT_FAIL)


class StopReason(StrEnum):
    """What ended an episode, and the outcome of one that is masked for it; without an outcome it is scored.

    To add one, write its entry here, and raise an errors.EpisodeError that has it as its `stop` where it is detected
    (errors.Ended for one that is scored)."""

    def __new__(cls, value: str, masked: Outcome | None = None) -> Self:
        """Returns the member of that value."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.masked = masked
        return member

    masked: Outcome | None
    """Whose doing the end was; None where the episode is scored on what the agent did."""

    ANSWER = "answer"
    """The agent gave its final answer."""
    USER_LEFT = "user_left"
    """The user ended the conversation."""
    TURNS = "turns"
    """The turn limit was reached."""
    TOKENS = "tokens"
    """The token limit (or the model's context) was reached."""
    MALFORMED = "malformed"
    """Two completions without an action where there is no user."""
    WALL_CLOCK = "wall_clock", Outcome.INFRA_ERROR
    """The episode's deadline passed."""
    STALE = "stale", Outcome.INFRA_ERROR
    """The pinned adapter fell behind current - max_staleness."""
    CANCELLED = "cancelled", Outcome.INFRA_ERROR
    """An operator cancelled it."""
    POLICY_ERROR = "policy_error", Outcome.INFRA_ERROR
    """The policy server failed after retries."""
    TOOL_ERROR = "tool_error", Outcome.TOOL_FAULT
    """The tool simulator failed after retries."""
    USER_ERROR = "user_error", Outcome.USER_FAULT
    """The user simulator failed after retries."""


class Source(StrEnum):
    """Who produced the tokens of a group."""

    POLICY = "policy"
    """The policy being trained; the only source GRPO reads."""
    TEACHER = "teacher"
    """A teacher model; ids and log-probabilities may be absent."""
    EVAL = "eval"
    """Held-out or validation episodes; never read by the learner."""


# --- one turn -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the policy samples; recorded in every frame because the learner refuses anything but plain temperature."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of an episode."""

    turns: int
    tokens: int
    """Ids in the ledger, prompt and observations included."""
    completion_tokens: int
    """Sampled tokens of one turn."""
    wall_s: float
    turn_s: float
    """Deadline of one completion, tool call or reply."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What a policy is asked to continue."""

    ids: Sequence[int]
    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]]
    adapter: str | None
    """Server-side adapter name; None asks for the base model."""
    sampling: Sampling
    limits: Limits
    group_id: str
    episode_id: str
    index: int

    @property
    def id(self) -> str:
        """``g000178.03@09``: the request id."""
        return f"{self.episode_id}@{self.index:02d}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What a policy said."""

    text: str
    ids: Sequence[int] | None
    """Sampled ids, a sampled stop token included; None for an untrainable policy."""
    logprobs: Sequence[float] | None
    """log mu of each sampled id, in nats."""
    adapter: str | None
    """The adapter that the server says it used."""
    server: str
    stop: Literal["stop", "length"]
    cached_tokens: int = 0
    """Of the prompt, what the server did not have to compute."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """One call of the agent."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What a tool answered."""

    content: str
    ok: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What the user answered."""

    text: str
    revealed: tuple[str, ...] = ()
    done: bool = False


class EventKind(StrEnum):
    """What the agent did, or got to know."""

    CALLED = "called"
    """A tool call and its observation."""
    SAID = "said"
    """Text to the user and the facts that the reply revealed."""
    ANSWERED = "answered"
    """The final answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One numbered fact about an episode; rubric checks are evaluated over these."""

    number: int
    turn: int
    kind: EventKind
    text: str
    """The observation, the agent's words, or the answer."""
    tool: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    ok: bool = True
    revealed: tuple[str, ...] = ()


# --- rewards and records --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The decision on one rubric item. ``met`` of a forbidden item means that it was violated."""

    id: str
    part: Literal["forbidden", "subgoal", "interaction"]
    met: bool
    evidence: int | None = None
    """Number of the event that decided it, where one did."""
    by: Literal["check", "judge"] = "check"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reward:
    """R = F (N + I) / 2, with its parts (arXiv 2601.22511, section 3.3)."""

    value: float
    F: float
    N: float
    I: float  # noqa: E741 - the paper's name for the interaction fraction
    items: tuple[Verdict, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Consecutive policy tokens of one turn."""

    start: int
    length: int
    version: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tokens:
    """The ledger of a finished episode (invariant *token-in, token-out*)."""

    ids: NDArray[np.uint32]
    """[T] every id of the episode: prompt, completions, observations."""
    logprobs: NDArray[np.float32]
    """[P] log mu of the policy tokens, in the order of the spans."""
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnTiming:
    """Start and end of each phase, in seconds on the run's clock: queued, policy, tool, user, scoring."""

    turn: int
    phase: Phase
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """The record of one finished episode."""

    id: str
    task_id: str
    seed: int
    adapter: str | None
    version: int
    """Adapter version that it was pinned to."""
    server: str
    messages: tuple[Mapping[str, Any], ...]
    events: tuple[Event, ...]
    tokens: Tokens | None
    stop: StopReason
    outcome: Outcome
    reward: Reward | None
    final_state: Any
    timings: tuple[TurnTiming, ...]
    turns: int
    error: str = ""

    @property
    def scored(self) -> bool:
        """Whether the learner may use it."""
        return self.reward is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeGroup:
    """G episodes of one task: the unit of the stream."""

    id: str
    position: int
    """Sampler position (or index within an evaluation)."""
    task_id: str
    source: Source
    sampling: Sampling
    episodes: tuple[Episode, ...]

    @property
    def oldest_version(self) -> int:
        """The oldest adapter version of any episode, masked ones included."""
        return min(episode.version for episode in self.episodes)
