"""An episode in flight: its conversation, ledger of token ids, events and timings, and the record it becomes.

The ledger only grows (invariant *token-in, token-out*); ids and log-probabilities live in compact arrays.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from engine.errors import Deadline
from engine.seams import Plan, Seams
from engine.types import Completion, Episode, Event, EventKind, Outcome, Reward, Span, StopReason, Tokens, TurnTiming

Phase = Literal["queued", "policy", "tool", "user", "scoring"]


@dataclass(slots=True)
class Ledger:
    """An episode in flight; `record` ends it."""

    plan: Plan
    seams: Seams
    stale: Callable[[int], bool]
    """Whether a version has fallen too far behind."""
    deadline: Deadline
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

    def timed(self, phase: Phase, start_s: float) -> None:
        """A phase of this turn ended now."""
        end_s = self.seams.clock()
        self.timings.append(TurnTiming(turn=self.turn, phase=phase, start_s=start_s, end_s=end_s))

    def happened(self, kind: EventKind, text: str, **details: Any) -> None:
        """Number one more event."""
        self.events.append(Event(number=len(self.events), turn=self.turn, kind=kind, text=text, **details))

    def sampled(self, completion: Completion) -> None:
        """Keep a completion: its ids as they were sampled."""
        self.server = completion.server
        self.messages.append({"role": "assistant", "content": completion.text})
        if completion.ids is None or completion.logprobs is None:
            self.trainable = False
            return
        self.spans.append(Span(start=len(self.ids), length=len(completion.ids), version=self.plan.version))
        self.ids.extend(completion.ids)
        self.logprobs.extend(completion.logprobs)

    def record(self, stop: StopReason, outcome: Outcome, reward: Reward | None, error: str) -> Episode:
        """The finished episode."""
        tokens = Tokens(
            ids=np.frombuffer(self.ids, dtype=np.uint32) if self.ids else np.zeros(0, np.uint32),
            logprobs=np.frombuffer(self.logprobs, dtype=np.float32) if self.logprobs else np.zeros(0, np.float32),
            spans=tuple(self.spans),
        )
        return Episode(
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
            turns=len({timing.turn for timing in self.timings if timing.phase == "policy"}),
            error=error,
        )
