"""One episode: every ending, every boundary, and the ledger."""

import math
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import anyio
import numpy as np
import pytest

from engine.core.episode import run_episode
from engine.core.seams import EpisodePlan, ScoringRecord, Seams
from engine.errors import Ended, EpisodeError, PolicyError, RewardError, ToolError, UserError
from engine.packs.pack import parse_task
from engine.reward.rubric import RubricScorer
from engine.scripted.constant import (
    ConstantScorer,
    ConstantSession,
    ConstantUser,
    ConstantUserSession,
    ConstantWorld,
)
from engine.task import Task
from engine.types import Completion, Episode, Limits, Observation, Outcome, Reply, Reward, Sampling, StopReason, Turn
from engine.world.offline import OfflineUser, OfflineWorld
from tests.parts.worlds import task_json

STOP = 2


class Letters:
    """A chat format of one id per character; 2 ends a turn."""

    def prompt(self, task: Task) -> tuple[list[Mapping[str, Any]], list[int], list[Mapping[str, Any]]]:
        messages = [{"role": "system", "content": task.rules}, {"role": "user", "content": task.instruction}]
        return messages, [1, *map(ord, task.instruction)], [tool.function for tool in task.tools]

    def observation(self, messages: Sequence[Mapping[str, Any]], stop_sampled: bool) -> list[int]:
        text = "".join(message["content"] for message in messages)
        return [*([] if stop_sampled else [STOP]), *map(ord, text)]

    def ended(self, ids: Sequence[int]) -> bool:
        return ids[-1] == STOP


class Lines:
    """A policy that says the given lines, one a turn."""

    def __init__(self, *lines: str, stop: bool = True, trainable: bool = True) -> None:
        self.lines, self.stop, self.trainable = lines, stop, trainable
        self.turns: list[Turn] = []

    async def complete(self, turn: Turn) -> Completion:
        self.turns.append(replace(turn, ids=list(turn.ids)))
        text = self.lines[min(turn.index, len(self.lines) - 1)]
        ids = [*map(ord, text), *([STOP] if self.stop else [])][: turn.limits.completion_tokens]
        return Completion(
            text=text,
            ids=ids if self.trainable else None,
            logprobs=[-0.5] * len(ids) if self.trainable else None,
            adapter=turn.adapter,
            server="here",
            stop="stop" if self.stop else "length",
        )


def returns(kind: type, method: str, value: Any) -> Any:
    """An object of `kind` one of whose methods returns what it should not."""

    async def wrong(*_: Any) -> Any:
        return value

    return type("Wrong", (kind,), {method: staticmethod(wrong)})()


def fails(error: Exception, *, after_s: float = 0.0) -> Callable[..., Any]:
    """An async function that raises."""

    async def broken(*_: Any) -> Any:
        await anyio.sleep(after_s)
        raise error

    return broken


def broken(kind: type, method: str, error: Exception, *, after_s: float = 0.0) -> Any:
    """An object of `kind` one of whose methods fails."""
    return type("Broken", (kind,), {method: staticmethod(fails(error, after_s=after_s))})()


LIMITS = Limits(turns=6, tokens=2000, completion_tokens=500, wall_s=5, turn_s=2)
DONE = "<answer>All done.</answer>"
ORDER = '<tool_call>{"name":"place_order","arguments":{"item":"apple","quantity":5}}</tool_call>'


async def play(policy: Any, *, task: Task | None = None, limits: Limits = LIMITS, **seams: Any) -> Episode:
    """Run one episode of the shop task, constant everything unless given."""
    whole = {"world": ConstantWorld(), "user": ConstantUser(), "scorer": ConstantScorer(), **seams}
    plan = EpisodePlan(
        id="g000007.01",
        group_id="g000007",
        task=task or parse_task(task_json()),
        seed=1,
        version=3,
        adapter="run-v00003",
        limits=limits,
        sampling=Sampling(),
        queued_s=0.0,
    )
    stale = whole.pop("stale", lambda _: False)
    return await run_episode(plan, Seams(policy=policy, chat=Letters(), clock=anyio.current_time, **whole), stale)


async def test_the_ledger_holds_exactly_what_was_sampled_and_what_was_observed() -> None:
    """token-in, token-out: spans are the completions, the rest is not the policy's."""
    policy = Lines(ORDER, DONE)
    episode = await play(policy)
    assert (episode.stop, episode.outcome) == (StopReason.ANSWER, Outcome.AGENT_OK)
    tokens = episode.tokens
    assert tokens is not None
    said = ["".join(map(chr, tokens.ids[span.start : span.start + span.length - 1])) for span in tokens.spans]
    assert said == [ORDER, DONE]
    assert [tokens.ids[span.start + span.length - 1] for span in tokens.spans] == [STOP, STOP]
    assert {span.version for span in tokens.spans} == {3}
    assert len(tokens.logprobs) == sum(span.length for span in tokens.spans)
    assert tokens.logprobs.dtype == np.float32
    assert policy.turns[1].ids == tokens.ids[: tokens.spans[1].start].tolist()
    assert [turn.id for turn in policy.turns] == ["g000007.01@00", "g000007.01@01"]
    assert {turn.adapter for turn in policy.turns} == {"run-v00003"}
    assert episode.turns == 2
    assert [timing.phase for timing in episode.timings] == ["queued", "policy", "tool", "policy", "scoring"]


async def test_a_turn_without_a_sampled_stop_token_gets_it_from_the_template() -> None:
    """The glue after a completion cut by length is an observation, not the policy's."""
    episode = await play(Lines("hello", stop=False), limits=replace(LIMITS, turns=2))
    assert episode.tokens is not None
    first = episode.tokens.spans[0]
    assert first.length == 5
    assert episode.tokens.ids[first.start + 5] == STOP


async def test_an_untrainable_policy_leaves_no_tokens() -> None:
    """A teacher without ids is recorded without a ledger."""
    episode = await play(Lines(DONE, trainable=False))
    assert episode.tokens is None
    assert episode.scored


async def test_questions_reveal_and_calls_happen_in_order() -> None:
    """Events are numbered and carry what checks need; the real offline world and user answer."""
    policy = Lines("<question>How many, please? What quantity?</question>", ORDER + ORDER, DONE)
    episode = await play(policy, world=OfflineWorld(), user=OfflineUser(), scorer=RubricScorer())
    kinds = [(event.number, event.kind.value, event.ok) for event in episode.events]
    assert kinds[0] == (0, "said", True)
    assert [kind for _, kind, _ in kinds] == ["said", "called", "called", "answered"]
    assert episode.final_state["orders"]["new"]["quantity"] == 5
    assert [message["role"] for message in episode.messages][-3:] == ["tool", "tool", "assistant"]


async def test_a_wrong_call_is_an_observation_and_the_episode_goes_on() -> None:
    """Malformed and unknown calls come back as errors."""
    lines = ("<tool_call>{nonsense</tool_call>", '<tool_call>{"name":"nope","arguments":{}}</tool_call>', DONE)
    episode = await play(Lines(*lines), world=OfflineWorld())
    contents = [message["content"] for message in episode.messages if message["role"] == "tool"]
    assert "malformed call" in contents[0]
    assert "unknown tool" in contents[1]
    assert episode.stop is StopReason.ANSWER


async def test_text_without_a_tag_goes_to_the_user() -> None:
    """And ends the episode where there is none, after one error observation."""
    episode = await play(Lines("hello", DONE))
    assert episode.messages[3] == {"role": "user", "content": "Please go on."}
    alone = replace(parse_task(task_json()), user=None)
    episode = await play(Lines("hello"), task=alone)
    assert (episode.stop, episode.turns) == (StopReason.MALFORMED, 2)
    assert episode.scored


async def test_the_user_may_leave() -> None:
    """A reply that says so ends the episode, scored."""

    class Leaving:
        async def open(self, *_: Any) -> "Leaving":
            return self

        async def reply(self, _: str) -> Reply:
            return Reply(text="Bye.", done=True)

    episode = await play(Lines("hello"), user=Leaving())
    assert (episode.stop, episode.scored) == (StopReason.USER_LEFT, True)


@pytest.mark.parametrize(
    ("limits", "stop"),
    [({"turns": 3}, StopReason.TURNS), ({"tokens": 60}, StopReason.TOKENS)],
)
async def test_limits_are_scored_on_what_was_done(limits: dict[str, int], stop: StopReason) -> None:
    """Turn and token limits are the agent's doing."""
    episode = await play(Lines("hello"), limits=replace(LIMITS, **limits))
    assert (episode.stop, episode.scored) == (stop, True)
    assert episode.tokens is not None
    assert len(episode.tokens.ids) <= 2000


class StoppedError(EpisodeError):
    """Whatever ends an episode for that reason."""

    def __init__(self, stop: StopReason) -> None:
        super().__init__("it happened")
        self.stop = stop


@pytest.mark.parametrize("stop", StopReason)
@pytest.mark.parametrize("kind", [StoppedError, Ended])
async def test_the_table_of_stop_reasons_says_what_is_scored(kind: Callable[..., Exception], stop: StopReason) -> None:
    """Whoever detects the end names the reason alone; it is read back as it was written."""
    episode = await play(broken(Lines, "complete", kind(stop)))
    assert episode.stop is stop is StopReason(str(stop))
    assert episode.scored == episode.outcome.scored == (stop.masked is None)
    assert stop.masked in (None, episode.outcome)
    assert bool(episode.error) == (stop.masked is not None)


@pytest.mark.parametrize(
    ("seams", "outcome", "said"),
    [
        ({"world": returns(ConstantWorld, "open", returns(ConstantSession, "call", "{}"))}, Outcome.TOOL_FAULT, "Obs"),
        ({"world": returns(ConstantWorld, "open", returns(ConstantSession, "close", 1j))}, Outcome.TOOL_FAULT, "JSON"),
        (
            {"user": returns(ConstantUser, "open", returns(ConstantUserSession, "reply", 7))},
            Outcome.USER_FAULT,
            "Reply",
        ),
        ({"scorer": returns(ConstantScorer, "score", 1.0)}, Outcome.JUDGE_FAULT, "returned float, not .*Reward"),
        (
            {"scorer": returns(ConstantScorer, "score", Reward(value=math.inf, F=1, N=1, I=1))},
            Outcome.JUDGE_FAULT,
            "inf",
        ),
    ],
)
async def test_what_no_record_could_hold_masks_the_episode(seams: dict[str, Any], outcome: Outcome, said: str) -> None:
    """Somebody's own world, user or scorer may return anything."""
    episode = await play(Lines(ORDER, "<question>So?</question>", DONE), **seams)
    assert (episode.outcome, episode.reward) == (outcome, None)
    assert re.search(said, episode.error)


@pytest.mark.parametrize(
    ("seams", "outcome", "stop"),
    [
        ({"policy": broken(Lines, "complete", OSError("gone"))}, Outcome.INFRA_ERROR, StopReason.POLICY_ERROR),
        ({"policy": broken(Lines, "complete", PolicyError("x"))}, Outcome.INFRA_ERROR, StopReason.POLICY_ERROR),
        ({"world": broken(ConstantWorld, "open", ToolError("x"))}, Outcome.TOOL_FAULT, StopReason.TOOL_ERROR),
        ({"user": broken(ConstantUser, "open", UserError("x"))}, Outcome.USER_FAULT, StopReason.USER_ERROR),
        ({"user": broken(ConstantUser, "open", KeyError("x"))}, Outcome.USER_FAULT, StopReason.USER_ERROR),
        ({"scorer": broken(ConstantScorer, "score", RewardError("x"))}, Outcome.JUDGE_FAULT, StopReason.ANSWER),
        ({"scorer": broken(ConstantScorer, "score", ValueError("x"))}, Outcome.JUDGE_FAULT, StopReason.ANSWER),
    ],
)
async def test_a_failing_seam_masks_the_episode_with_its_own_outcome(
    seams: dict[str, Any], outcome: Outcome, stop: StopReason
) -> None:
    """bad-episode-is-data and trusted-reward: never an exception, never a reward, never tool text."""
    policy = seams.pop("policy", Lines(DONE))
    episode = await play(policy, **seams)
    assert (episode.outcome, episode.stop) == (outcome, stop)
    assert episode.reward is None
    assert episode.error
    assert not any(message["role"] == "tool" for message in episode.messages)


async def test_a_tool_that_fails_is_never_shown_to_the_policy() -> None:
    """The simulator's fault ends the episode; the conversation stops before it."""

    class Failing(ConstantWorld):
        async def open(self, *_: Any) -> Any:
            session = await ConstantWorld.open(self, *_)
            return type("S", (type(session),), {"call": staticmethod(fails(ToolError("simulator down")))})()

    episode = await play(Lines(ORDER, DONE), world=Failing())
    assert (episode.outcome, episode.stop) == (Outcome.TOOL_FAULT, StopReason.TOOL_ERROR)
    assert episode.messages[-1]["role"] == "assistant"


async def test_a_slow_turn_is_the_boundarys_fault_and_a_slow_episode_the_wall_clocks() -> None:
    """Deadlines are typed: a turn's by its boundary, the episode's as infra_error."""
    slow = broken(Lines, "complete", OSError("late"), after_s=9)
    episode = await play(slow, limits=replace(LIMITS, turn_s=0.05))
    assert (episode.outcome, episode.stop) == (Outcome.INFRA_ERROR, StopReason.POLICY_ERROR)
    episode = await play(slow, limits=replace(LIMITS, wall_s=0.05))
    assert (episode.outcome, episode.stop) == (Outcome.INFRA_ERROR, StopReason.WALL_CLOCK)
    assert episode.final_state == {}


async def test_a_stale_episode_ends_at_its_next_turn_boundary() -> None:
    """Stragglers cannot hold adapter slots for ever; they are masked."""
    policy = Lines("hello")
    episode = await play(policy, stale=lambda version: len(policy.turns) == 2 and version == 3)
    assert (episode.outcome, episode.stop, episode.turns) == (Outcome.INFRA_ERROR, StopReason.STALE, 2)
    assert episode.reward is None


async def test_a_completion_from_another_adapter_is_refused() -> None:
    """pinned-version: the server's word about the adapter is checked."""

    class Base(Lines):
        async def complete(self, turn: Turn) -> Completion:
            return replace(await super().complete(turn), adapter=None)

    episode = await play(Base(DONE))
    assert (episode.outcome, episode.stop) == (Outcome.INFRA_ERROR, StopReason.POLICY_ERROR)
    assert "run-v00003" in episode.error


async def test_less_than_full_marks_is_agent_fail() -> None:
    """agent_ok means reward 1."""

    class Half(ConstantScorer):
        async def score(self, record: ScoringRecord) -> Reward:
            return replace(await super().score(record), value=0.5)

    assert (await play(Lines(DONE), scorer=Half())).outcome is Outcome.AGENT_FAIL


async def test_cancellation_closes_the_world_and_is_not_swallowed() -> None:
    """A cancelled episode leaves its session closed and returns nothing."""
    closed = []

    class Watched(ConstantWorld):
        async def open(self, *_: Any) -> Any:
            session = await ConstantWorld.open(self, *_)

            async def close() -> Any:
                closed.append(True)
                return {}

            return type("S", (type(session),), {"close": staticmethod(close)})()

    with anyio.move_on_after(0.05) as scope:
        await play(broken(Lines, "complete", OSError("late"), after_s=9), world=Watched())
    assert scope.cancelled_caught
    assert closed == [True]


async def test_long_observations_are_tokenized_off_the_loop() -> None:
    """no-block: a huge tool answer goes through a worker thread and still into the ledger."""

    class Long(ConstantWorld):
        async def open(self, *_: Any) -> Any:
            session = await ConstantWorld.open(self, *_)

            async def call(*_: Any) -> Observation:
                return Observation(content="x" * 10_000, ok=True)

            return type("S", (type(session),), {"call": staticmethod(call)})()

    episode = await play(Lines(ORDER, DONE), world=Long(), limits=replace(LIMITS, tokens=20_000))
    assert episode.tokens is not None
    assert int((episode.tokens.ids == ord("x")).sum()) >= 10_000


async def test_a_final_state_that_no_frame_could_hold_is_the_worlds_fault() -> None:
    """bad-episode-is-data: a plug-in world whose state is not JSON masks its episode, not the run."""

    class Odd(ConstantWorld):
        async def open(self, *_: Any) -> Any:
            session = await ConstantWorld.open(self, *_)

            async def close() -> Any:
                return {"seen": {1, 2}}

            return type("S", (type(session),), {"close": staticmethod(close)})()

    episode = await play(Lines(DONE), world=Odd())
    assert (episode.outcome, episode.stop, episode.final_state) == (Outcome.TOOL_FAULT, StopReason.TOOL_ERROR, None)


async def test_a_completion_without_a_token_is_the_policys_fault() -> None:
    """There is no span for it in any frame."""

    class Silent(Lines):
        async def complete(self, turn: Turn) -> Completion:
            return replace(await super().complete(turn), ids=[], logprobs=[])

    episode = await play(Silent(DONE))
    assert (episode.outcome, episode.stop) == (Outcome.INFRA_ERROR, StopReason.POLICY_ERROR)
    assert "sampled nothing for g000007.01@00" in episode.error


async def test_a_template_that_refuses_a_task_masks_the_episode(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rendering is code of the model's makers: what it raises ends one episode."""

    def refuses(*_: Any) -> Any:
        raise TypeError("no tools here")

    monkeypatch.setattr(Letters, "prompt", refuses)
    episode = await play(Lines(DONE))
    assert (episode.outcome, episode.stop) == (Outcome.INFRA_ERROR, StopReason.POLICY_ERROR)
    assert "no tools here" in episode.error


async def test_a_request_without_an_answer_is_on_record() -> None:
    """Its time is what an audit of pauses looks at; it is no turn."""
    episode = await play(broken(Lines, "complete", OSError("late"), after_s=9), limits=replace(LIMITS, turn_s=0.05))
    [timing] = [timing for timing in episode.timings if timing.phase == "policy"]
    assert timing.end_s - timing.start_s >= 0.05
    assert episode.turns == 0


async def test_long_rules_are_tokenized_off_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """no-block: a whole policy document goes through a worker thread."""
    threads = []
    prompt = Letters.prompt

    def watched(self: Letters, task: Task) -> Any:
        threads.append(threading.current_thread() is threading.main_thread())
        return prompt(self, task)

    monkeypatch.setattr(Letters, "prompt", watched)
    await play(Lines(DONE))
    await play(Lines(DONE), task=replace(parse_task(task_json()), rules="x" * 10_000))
    assert threads == [True, False]
