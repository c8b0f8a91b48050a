"""One episode, from its opening to its record.

Invariants kept here: *token-in, token-out* (the ledger only grows, and sampled ids are never re-tokenized);
*pinned-version* (every turn asks for the adapter that the episode leased); *bad-episode-is-data* (whatever goes wrong
ends this episode with a typed outcome); *trusted-reward* (only agent_ok and agent_fail are scored).
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import anyio
import numpy as np

from engine.errors import (
    EpisodeError,
    LimitReached,
    PolicyError,
    RewardError,
    StaleError,
    ToolError,
    UserError,
    WallClockError,
    boundary,
)
from engine.policy.actions import Answer, Calls, Malformed, parse
from engine.seams import Plan, ScoringRecord, Seams, Session, UserSession
from engine.types import (
    Completion,
    Episode,
    Event,
    EventKind,
    Observation,
    Outcome,
    Reward,
    Span,
    StopReason,
    Tokens,
    ToolCall,
    Turn,
    TurnTiming,
)

_LONG_TEXT = 4000
"""Characters above which an observation is tokenized in a worker thread (invariant no-block)."""
_NO_USER = '{"error":"there is no user: call a tool or give the final answer"}'

Phase = Literal["queued", "policy", "tool", "user", "scoring"]


@dataclass(slots=True)
class _Live:
    """An episode in flight."""

    plan: Plan
    seams: Seams
    stale: Callable[[int], bool]
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
        end_s = self.seams.clock()
        self.timings.append(TurnTiming(turn=self.turn, phase=phase, start_s=start_s, end_s=end_s))

    def happened(self, kind: EventKind, text: str, **details: Any) -> None:
        self.events.append(Event(number=len(self.events), turn=self.turn, kind=kind, text=text, **details))


async def run_episode(plan: Plan, seams: Seams, stale: Callable[[int], bool]) -> Episode:
    """Play one episode to its end and score it; never raises for what happens inside it.

    `stale(version)` says, at each turn boundary, whether the pinned version has fallen too far behind."""
    live = _Live(plan=plan, seams=seams, stale=stale)
    live.timed("queued", plan.queued_s)
    stop, outcome, reward, error = StopReason.ANSWER, Outcome.INFRA_ERROR, None, ""
    try:
        with anyio.move_on_after(plan.limits.wall_s) as scope:
            stop = await _play(live)
            reward = await _score(live, stop)
            outcome = Outcome.AGENT_OK if reward.value >= 1 else Outcome.AGENT_FAIL
        if scope.cancelled_caught:
            raise WallClockError(f"{plan.id}: {plan.limits.wall_s:g} s passed")
    except EpisodeError as problem:
        # A judge's failure leaves the reason that ended the conversation; the others are the reason themselves.
        stop = stop if isinstance(problem, RewardError) else problem.stop
        outcome, reward, error = problem.outcome, None, str(problem)
    return _record(live, stop, outcome, reward, error)


async def _play(live: _Live) -> StopReason:
    task = live.plan.task
    async with boundary(ToolError, f"{task.id}: open world"):
        session = await live.seams.world.open(task, live.plan.seed)
    try:
        async with boundary(UserError, f"{task.id}: open user"):
            user = await live.seams.user.open(task, live.plan.seed, session) if task.user else None
        messages, ids, live.tools = live.seams.chat.opening(task)
        live.messages.extend(messages)
        live.ids.extend(ids)
        return await _converse(live, session, user)
    except LimitReached as limit:
        return limit.stop
    finally:
        with anyio.CancelScope(shield=True):
            async with boundary(ToolError, f"{task.id}: close world"):
                live.final_state = await session.close()


async def _converse(live: _Live, session: Session, user: UserSession | None) -> StopReason:
    aimless = False
    while True:
        if live.stale(live.plan.version):
            raise StaleError(f"version {live.plan.version} fell too far behind")
        completion = await _complete(live)
        action = parse(completion.text)
        if isinstance(action, Answer):
            live.happened(EventKind.ANSWERED, action.text)
            return StopReason.ANSWER
        if isinstance(action, Calls):
            contents = [await _call(live, session, call) for call in action.calls]
            observations = [{"role": "tool", "content": content} for content in contents]
        elif user is not None:
            text, done = await _ask(live, user, action.text)
            if done:
                return StopReason.USER_LEFT
            observations = [{"role": "user", "content": text}]
        elif aimless:
            return StopReason.MALFORMED
        else:
            aimless = True
            observations = [{"role": "tool", "content": _NO_USER}]
        await _observe(live, observations, completion)
        live.turn += 1


async def _complete(live: _Live) -> Completion:
    """One turn of the policy; the sampled ids go to the ledger as they are."""
    plan, limits = live.plan, live.plan.limits
    room = limits.tokens - len(live.ids)
    if live.turn >= limits.turns:
        raise LimitReached(StopReason.TURNS)
    if room < 1:
        raise LimitReached(StopReason.TOKENS)
    if room < limits.completion_tokens:
        limits = replace(limits, completion_tokens=room)
    turn = Turn(
        ids=live.ids,
        messages=live.messages,
        tools=live.tools,
        adapter=plan.adapter,
        sampling=plan.sampling,
        limits=limits,
        group_id=plan.group_id,
        episode_id=plan.id,
        index=live.turn,
    )
    start_s = live.seams.clock()
    async with boundary(PolicyError, turn.id):
        with anyio.fail_after(limits.turn_s):
            completion = await live.seams.policy.complete(turn)
    live.timed("policy", start_s)
    if completion.adapter != plan.adapter:
        raise PolicyError(f"{completion.server} sampled {turn.id} with {completion.adapter}, not with {plan.adapter}")
    live.server = completion.server
    live.messages.append({"role": "assistant", "content": completion.text})
    if completion.ids is None or completion.logprobs is None:
        live.trainable = False
    else:
        live.spans.append(Span(start=len(live.ids), length=len(completion.ids), version=plan.version))
        live.ids.extend(completion.ids)
        live.logprobs.extend(completion.logprobs)
    return completion


async def _call(live: _Live, session: Session, call: ToolCall | Malformed) -> str:
    """Run one call; returns what the agent sees."""
    if isinstance(call, Malformed):
        return call.observation
    start_s = live.seams.clock()
    async with boundary(ToolError, call.name):
        with anyio.fail_after(live.plan.limits.turn_s):
            observation: Observation = await session.call(call)
    live.timed("tool", start_s)
    arguments = call.arguments
    live.happened(EventKind.CALLED, observation.content, tool=call.name, arguments=arguments, ok=observation.ok)
    return observation.content


async def _ask(live: _Live, user: UserSession, text: str) -> tuple[str, bool]:
    """Say `text` to the user; returns the reply and whether the user left."""
    start_s = live.seams.clock()
    async with boundary(UserError, "user"):
        with anyio.fail_after(live.plan.limits.turn_s):
            reply = await user.reply(text)
    live.timed("user", start_s)
    live.happened(EventKind.SAID, text, revealed=reply.revealed)
    return reply.text, reply.done


async def _observe(live: _Live, observations: list[dict[str, str]], completion: Completion) -> None:
    live.messages.extend(observations)
    if completion.ids is None:
        return
    chat, stop_sampled = live.seams.chat, live.seams.chat.ended(completion.ids)
    if sum(len(message["content"]) for message in observations) > _LONG_TEXT:
        live.ids.extend(await anyio.to_thread.run_sync(chat.observation, observations, stop_sampled))
    else:
        live.ids.extend(chat.observation(observations, stop_sampled))


async def _score(live: _Live, stop: StopReason) -> Reward:
    start_s = live.seams.clock()
    record = ScoringRecord(
        task=live.plan.task, messages=live.messages, events=live.events, final_state=live.final_state, stop=stop
    )
    async with boundary(RewardError, f"{live.plan.id}: scoring"):
        reward = await live.seams.scorer.score(record)
    live.timed("scoring", start_s)
    return reward


def _record(live: _Live, stop: StopReason, outcome: Outcome, reward: Reward | None, error: str) -> Episode:
    tokens = Tokens(
        ids=np.frombuffer(live.ids, dtype=np.uint32) if live.ids else np.zeros(0, np.uint32),
        logprobs=np.frombuffer(live.logprobs, dtype=np.float32) if live.logprobs else np.zeros(0, np.float32),
        spans=tuple(live.spans),
    )
    return Episode(
        id=live.plan.id,
        task_id=live.plan.task.id,
        seed=live.plan.seed,
        adapter=live.plan.adapter,
        version=live.plan.version,
        server=live.server,
        messages=tuple(live.messages),
        events=tuple(live.events),
        tokens=tokens if live.trainable else None,
        stop=stop,
        outcome=outcome,
        reward=reward,
        final_state=live.final_state,
        timings=tuple(live.timings),
        turns=len({timing.turn for timing in live.timings if timing.phase == "policy"}),
        error=error,
    )
