"""An episode in flight: its conversation, ledger of token ids, events and timings, and the record it becomes.

The ledger only grows (invariant *token-in, token-out*); ids and log-probabilities live in compact arrays.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import anyio
import anyio.to_thread
import numpy as np

from engine.core.seams import EpisodePlan, ScoringRecord, Seams
from engine.errors import CancelError, Deadline, EpisodeError, PolicyError, boundary
from engine.schema.frozen import is_frozen, thawed
from engine.schema.legible import legible
from engine.schema.recordable import recorded, recorded_text
from engine.types import (
    Completion,
    Episode,
    Event,
    EventKind,
    Json,
    Limits,
    Observation,
    Outcome,
    Phase,
    Reward,
    Span,
    StopReason,
    Tokens,
    ToolCall,
    Turn,
    TurnTiming,
)

_LONG_TEXT = 4000
"""Characters above which a text is tokenized in a worker thread (invariant no-block)."""

_Made = TypeVar("_Made")


@dataclass(slots=True)
class Ledger:
    """An episode in flight; a statement, inside which its deadline holds; `record` ends it.

    Whoever looks at the run sees it as engine.telemetry.window.Seen."""

    plan: EpisodePlan
    seams: Seams
    stale: Callable[[int], bool]
    """Whether a version has fallen too far behind."""
    deadline: Deadline = field(init=False)
    id: str = field(init=False)
    group_id: str = field(init=False)
    task_id: str = field(init=False)
    version: int = field(init=False)
    start_s: float = field(init=False)
    phase_s: float = field(init=False)
    phase: str = "queued"
    """What it waits for: a step's phase lasts until the next step begins."""
    messages: list[Mapping[str, Any]] = field(default_factory=list)
    tools: Sequence[Mapping[str, Any]] = ()
    ids: array[int] = field(default_factory=lambda: array("I"))
    logprobs: array[float] = field(default_factory=lambda: array("f"))
    spans: list[Span] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    timings: list[TurnTiming] = field(default_factory=list)
    turn: int = 0
    trainable: bool = True
    server: str = ""
    final_state: Any = None
    reward: float | None = None
    outcome: str = ""
    finished: Episode | None = None
    """What it became."""

    def __post_init__(self) -> None:
        plan = self.plan
        self.deadline = Deadline(plan.id, step_s=plan.limits.turn_s, wall_s=plan.limits.wall_s)
        self.id, self.group_id, self.task_id, self.version = plan.id, plan.group_id, plan.task.id, plan.version
        self.start_s = self.phase_s = self.seams.clock()
        if self.seams.live is not None:
            self.seams.live.enter(self)

    def __enter__(self) -> Self:
        self.deadline.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> bool | None:
        swallowed = self.deadline.__exit__(kind, error, tb)
        if self.seams.live is not None and not (error is None or isinstance(error, EpisodeError)):
            # It is cancelled with all the others, or the run fails: no record will come of it.
            self.seams.live.leave(self)
        return swallowed

    @property
    def tokens(self) -> int:
        """Ids so far."""
        return len(self.ids)

    def moved(self, phase: Phase | Literal["done"], now_s: float) -> None:
        """It waits for something else now."""
        if self.seams.live is not None:
            self.seams.live.moved(self, phase)
        self.phase, self.phase_s = phase, now_s

    def cancel(self) -> None:
        """An operator ends it."""
        self.deadline.cancel(CancelError(f"{self.id}: cancelled by an operator"))

    def step(self, kind: type[EpisodeError], what: str, phase: Phase) -> boundary:
        """The boundary around one step: timed however it ends, and a judge alone may take all of the wall clock."""
        return _Step(self, kind, what, phase)

    def timed(self, phase: Phase, start_s: float) -> float:
        """A phase of this turn ended now; returns how long it took."""
        end_s = self.seams.clock()
        self.timings.append(TurnTiming(turn=self.turn, phase=phase, start_s=start_s, end_s=end_s))
        if self.seams.live is not None:
            self.seams.live.stages.took(phase, end_s - start_s)
        return end_s - start_s

    def happened(self, kind: EventKind, text: str, **details: Any) -> None:
        """Number one more event."""
        self.events.append(Event(number=len(self.events), turn=self.turn, kind=kind, text=text, **details))

    def called(self, call: ToolCall, observation: Observation) -> None:
        """A tool answered."""
        self.happened(
            EventKind.CALLED, observation.content, tool=call.name, arguments=call.arguments, ok=observation.ok
        )
        if self.seams.live is not None and not observation.ok:
            self.seams.live.stages.refused(call.name)

    async def opened(self) -> None:
        """Begin the conversation."""
        task = self.plan.task
        characters = len(task.rules) + len(task.instruction)
        messages, ids, self.tools = await _tokenized(characters, lambda: self.seams.chat.prompt(task))
        self.messages.extend(messages)
        self.ids.extend(ids)

    def ended_in(self, state: Json) -> None:
        """Keep the world's final state, as whoever reads the record gets it.

        Raises UnrecordableError for what no record can hold."""
        self.final_state = state if is_frozen(state) else recorded(state)

    def asked(self, limits: Limits) -> Turn:
        """What the policy is asked to continue now."""
        return Turn(
            ids=self.ids,
            messages=self.messages,
            tools=self.tools,
            adapter=self.plan.adapter,
            sampling=self.plan.sampling,
            limits=limits,
            group_id=self.plan.group_id,
            episode_id=self.plan.id,
            index=self.turn,
        )

    def sampled(self, completion: Completion) -> None:
        """Keep a completion: its ids as they were sampled.

        Raises PolicyError for one without a token: there is nothing to train on, and no span for it; and
        UnrecordableError for a text that no record can hold."""
        text = recorded_text(completion.text)
        if completion.ids is not None and not len(completion.ids):
            raise PolicyError(f"{completion.server} sampled nothing for {self.plan.id}@{self.turn:02d}")
        self.server = completion.server
        self.messages.append({"role": "assistant", "content": text})
        if completion.ids is None or completion.logprobs is None:
            self.trainable = False
            return
        if self.seams.live is not None:
            self.seams.live.stages.prompted(len(self.ids), completion.cached_tokens)
        self.spans.append(Span(start=len(self.ids), length=len(completion.ids), version=self.plan.version))
        self.ids.extend(completion.ids)
        self.logprobs.extend(completion.logprobs)

    async def observed(self, messages: Sequence[Mapping[str, Any]], completion: Completion) -> None:
        """Keep what the agent gets to see after a completion: only the ids that it adds."""
        self.messages.extend(messages)
        if completion.ids is None:
            return
        chat, stop_sampled = self.seams.chat, self.seams.chat.ended(completion.ids)
        characters = sum(len(message["content"]) for message in messages)
        self.ids.extend(await _tokenized(characters, lambda: chat.observation(messages, stop_sampled)))

    def to_score(self, stop: StopReason) -> ScoringRecord:
        """What a scorer sees: copies, so that it changes nothing of what is recorded."""
        return ScoringRecord(
            task=self.plan.task,
            messages=[dict(message) for message in self.messages],
            events=[_own(event) for event in self.events],
            final_state=thawed(self.final_state),
            stop=stop,
        )

    def record(self, stop: StopReason, outcome: Outcome, reward: Reward | None, error: str) -> Episode:
        """The finished episode."""
        tokens = Tokens(
            ids=np.frombuffer(self.ids, dtype=np.uint32) if self.ids else np.zeros(0, np.uint32),
            logprobs=np.frombuffer(self.logprobs, dtype=np.float32) if self.logprobs else np.zeros(0, np.float32),
            spans=tuple(self.spans),
        )
        episode = Episode(
            id=self.plan.id,
            task_id=self.plan.task.id,
            seed=self.plan.seed,
            adapter=self.plan.adapter,
            version=self.plan.version,
            server=self.server,
            messages=tuple(self.messages),
            events=tuple(self.events),
            tokens=tokens if self.trainable else None,
            stop=stop,
            outcome=outcome,
            reward=reward,
            final_state=self.final_state,
            timings=tuple(self.timings),
            turns=sum(message["role"] == "assistant" for message in self.messages),
            error=legible(error),
        )
        self.reward = None if reward is None else float(reward.value)
        self.outcome, self.turn, self.finished = str(outcome), episode.turns, episode
        self.moved("done", self.seams.clock())
        return episode


def _own(event: Event) -> Event:
    """A copy that shares nothing which can be changed; without `dataclasses.replace`, for it runs for every event."""
    return Event(
        number=event.number,
        turn=event.turn,
        kind=event.kind,
        text=event.text,
        tool=event.tool,
        arguments=thawed(event.arguments),
        ok=event.ok,
        revealed=event.revealed,
    )


async def _tokenized(characters: int, work: Callable[[], _Made]) -> _Made:
    """What `work` makes of a text of that length; in a worker thread if it is long."""
    return await anyio.to_thread.run_sync(work) if characters > _LONG_TEXT else work()


class _Step(boundary):
    """A boundary that records how long its phase took."""

    __slots__ = ("_live", "_phase", "_start_s")

    def __init__(self, live: Ledger, kind: type[EpisodeError], what: str, phase: Phase) -> None:
        super().__init__(kind, what, None if phase == "scoring" else live.deadline)
        self._live, self._phase, self._start_s = live, phase, live.seams.clock()
        live.moved(phase, self._start_s)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        took_s, seen = self._live.timed(self._phase, self._start_s), self._live.seams.live
        if seen is not None and self._phase == "tool":
            seen.stages.called(self._what, took_s, broken=error is not None)
        self.leave(error)
