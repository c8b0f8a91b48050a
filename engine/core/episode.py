"""One episode, from its prompt to its record.

Invariants kept here: *token-in, token-out* (the ledger only grows, and sampled ids are never re-tokenized);
*pinned-version* (every turn asks for the adapter that the episode leased); *bad-episode-is-data* (whatever goes wrong
ends this episode with a typed outcome); *trusted-reward* (only agent_ok and agent_fail are scored).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NoReturn

import anyio

from engine import errors
from engine.chat.actions import AgentCalls, FinalAnswer, Malformed, parse_action
from engine.core.ledger import Ledger
from engine.core.seams import EpisodePlan, Seams, Session, UserSession, returned
from engine.errors import boundary
from engine.schema.frozen import thawed
from engine.types import Completion, Episode, EventKind, Observation, Outcome, Reply, Reward, StopReason, ToolCall

_NO_USER = '{"error":"there is no user: call a tool or give the final answer"}'


async def run_episode(plan: EpisodePlan, seams: Seams, stale: Callable[[int], bool]) -> Episode:
    """Play one episode to its end and score it; never raises for what happens inside it.

    `stale(version)` says, at each turn boundary, whether the pinned version has fallen too far behind."""
    live = Ledger(plan=plan, seams=seams, stale=stale)
    live.timed("queued", plan.queued_s)
    stop, outcome, reward, error = StopReason.ANSWER, Outcome.INFRA_ERROR, None, ""
    try:
        with live:
            stop = await _play(live)
            reward = await _score(live, stop)
            outcome = Outcome.AGENT_OK if reward.value >= 1 else Outcome.AGENT_FAIL
    except errors.EpisodeError as problem:
        # A judge's failure leaves the reason that ended the conversation; the others are the reason themselves.
        stop = stop if isinstance(problem, errors.RewardError) else problem.stop
        outcome, reward, error = problem.outcome, None, str(problem)
    return live.record(stop, outcome, reward, error)


async def _play(live: Ledger) -> StopReason:
    task = live.plan.task
    async with boundary(errors.ToolError, f"{task.id}: open world", live.deadline):
        session = await live.seams.world.open(task, live.plan.seed)
    try:
        async with boundary(errors.UserError, f"{task.id}: open user", live.deadline):
            user = await live.seams.user.open(task, live.plan.seed, session) if task.user else None
        async with boundary(errors.PolicyError, f"{task.id}: prompt"):
            await live.opened()
        await _converse(live, session, user)
    except errors.EpisodeError as end:
        if end.stop.masked is not None:
            raise
        return end.stop
    finally:
        async with boundary(errors.ToolError, f"{task.id}: close world"):
            with anyio.fail_after(live.plan.limits.turn_s, shield=True):
                live.ended_in(await session.close())


async def _converse(live: Ledger, session: Session, user: UserSession | None) -> NoReturn:
    aimless = False
    while True:
        if live.stale(live.plan.version):
            raise errors.StaleError(f"version {live.plan.version} fell too far behind")
        completion = await _complete(live)
        action = parse_action(completion.text)
        if isinstance(action, FinalAnswer):
            live.happened(EventKind.ANSWERED, action.text)
            raise errors.Ended(StopReason.ANSWER)
        if isinstance(action, AgentCalls):
            contents = [await _call(live, session, call) for call in action.calls]
            observations = [{"role": "tool", "content": content} for content in contents]
        elif user is not None:
            text, done = await _ask(live, user, action.text)
            if done:
                raise errors.Ended(StopReason.USER_LEFT)
            observations = [{"role": "user", "content": text}]
        elif aimless:
            raise errors.Ended(StopReason.MALFORMED)
        else:
            aimless = True
            observations = [{"role": "tool", "content": _NO_USER}]
        async with boundary(errors.PolicyError, f"{live.plan.id}: observation"):
            await live.observed(observations, completion)
        live.turn += 1


async def _complete(live: Ledger) -> Completion:
    """One turn of the policy; the sampled ids go to the ledger as they are."""
    plan, limits = live.plan, live.plan.limits
    room = limits.tokens - len(live.ids)
    if live.turn >= limits.turns:
        raise errors.Ended(StopReason.TURNS)
    if room < 1:
        raise errors.Ended(StopReason.TOKENS)
    if room < limits.completion_tokens:
        limits = replace(limits, completion_tokens=room)
    turn = live.asked(limits)
    async with live.step(errors.PolicyError, turn.id, "policy"):
        completion = await live.seams.policy.complete(turn)
        if completion.adapter != plan.adapter:
            raise errors.PolicyError(
                f"{completion.server} sampled {turn.id} with {completion.adapter}, not {plan.adapter}"
            )
        live.sampled(completion)
    return completion


async def _call(live: Ledger, session: Session, call: ToolCall | Malformed) -> str:
    """Run one call; returns what the agent sees."""
    if isinstance(call, Malformed):
        return call.observation
    async with live.step(errors.ToolError, call.name, "tool"):
        # A copy: whatever the world does with its arguments, the agent called these.
        own = ToolCall(name=call.name, arguments=thawed(call.arguments))
        observation = returned(await session.call(own), Observation)
    live.called(call, observation)
    return observation.content


async def _ask(live: Ledger, user: UserSession, text: str) -> tuple[str, bool]:
    """Say `text` to the user; returns the reply and whether the user left."""
    async with live.step(errors.UserError, "user", "user"):
        reply = returned(await user.reply(text), Reply)
    live.happened(EventKind.SAID, text, revealed=reply.revealed)
    return reply.text, reply.done


async def _score(live: Ledger, stop: StopReason) -> Reward:
    async with live.step(errors.RewardError, f"{live.plan.id}: scoring", "scoring"):
        return returned(await live.seams.scorer.score(live.to_score(stop)), Reward)
