"""The showcase pack proves itself: each rubric item of each task is flipped by exactly its planted trajectory."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from engine.core.episode import run_episode
from engine.errors import ConfigError
from engine.reward.rubric import RubricScorer
from engine.seams import Plan, Seams, Session, User
from engine.synthesis.planted import Planted, guessed, informed, planted, script
from engine.task import Split, Task
from engine.types import Completion, Episode, EventKind, Limits, Outcome, Reply, Reward, Sampling, ToolCall, Turn
from engine.world.offline import OfflineWorld
from engine.world.offline_user import UNSURE, OfflineUser, OfflineUserSession
from engine.world.tasks import load_pack

PACK = Path(__file__).parents[1] / "engine/assets/packs/showcase.jsonl"
TASKS = load_pack(PACK).tasks
LIMITS = Limits(turns=32, tokens=1 << 20, completion_tokens=1024, wall_s=60, turn_s=30)
REFUSED_IN_GOLD = {"showcase-ferry-cabin": ["book_cabin"]}
"""Where the world refuses a right call, and the agent has to ask again."""
VAGUE = (
    "Any details?",
    "Can you tell me more?",
    "What else should I know?",
    "What do you need?",
    "Please give me all the information you have.",
    "How can I help you today?",
    "What would you like?",
)

each_task = pytest.mark.parametrize("task", TASKS, ids=[task.id for task in TASKS])


# --- playing a script -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Speaker:
    """A policy without a model: `says(position, messages)` is its completion."""

    says: Callable[[int, Sequence[Mapping[str, Any]]], str]

    async def complete(self, turn: Turn) -> Completion:
        """Say the completion of this position."""
        text = self.says(turn.index, turn.messages)
        return Completion(text=text, ids=None, logprobs=None, adapter=turn.adapter, server="script", stop="stop")


class PlainChat:
    """Messages without tokens."""

    def opening(self, task: Task) -> tuple[list[dict[str, Any]], list[int], list[dict[str, Any]]]:
        """Rules, instruction and tools."""
        system, user = {"role": "system", "content": task.rules}, {"role": "user", "content": task.instruction}
        return [system, user], [], [tool.function for tool in task.tools]

    def observation(self, messages: Sequence[Mapping[str, Any]], stop_sampled: bool) -> list[int]:
        """No ids."""
        return []

    def ended(self, ids: Sequence[int]) -> bool:
        """Always."""
        return True


class MutedUser:
    """Understands nothing."""

    async def open(self, task: Task, seed: int, session: Session) -> "MutedUser":
        """One user for all."""
        return self

    async def reply(self, message: str) -> Reply:
        """Reveal nothing."""
        return Reply(text=UNSURE)


@dataclass(frozen=True)
class ForgetfulUser:
    """The offline user without one of the facts."""

    fact: str

    async def open(self, task: Task, seed: int, session: Session) -> OfflineUserSession:
        """A user with the other facts."""
        assert task.user is not None
        facts = {name: fact for name, fact in task.user.facts.items() if name != self.fact}
        return OfflineUserSession(replace(task.user, facts=facts))


async def play(task: Task, says: Sequence[str] | Speaker, user: User | None = None) -> Episode:
    """One episode of a task through the real world, user, rubric and episode loop."""
    seams = Seams(
        policy=says if isinstance(says, Speaker) else Speaker(lambda position, _: says[position]),
        world=OfflineWorld(),
        user=user or OfflineUser(),
        scorer=RubricScorer(),
        chat=PlainChat(),
        clock=lambda: 0.0,
    )
    plan = Plan(
        id="g000000.00",
        group_id="g000000",
        task=task,
        seed=0,
        version=0,
        adapter=None,
        limits=LIMITS,
        sampling=Sampling(),
        queued_s=0.0,
    )
    return await run_episode(plan, seams, lambda _: False)


def honest(task: Task) -> Speaker:
    """Follows the gold script, but guesses what the user has not said."""
    assert task.user is not None
    facts = task.user.facts

    def says(position: int, messages: Sequence[Mapping[str, Any]]) -> str:
        heard = "\n".join(message["content"] for message in messages[2:] if message["role"] == "user")
        known = frozenset(name for name, fact in facts.items() if occurs(fact.value, heard))
        return informed(task, position, known)

    return Speaker(says)


def occurs(value: Any, text: str) -> bool:
    """Whether a value stands in a text as a word."""
    return re.search(rf"(?<!\w){re.escape(str(value))}(?!\w)", text, re.IGNORECASE) is not None


def scored(episode: Episode) -> Reward:
    """The reward of an episode that was not masked."""
    assert episode.reward is not None, episode.error
    return episode.reward


def verdicts(episode: Episode) -> dict[str, bool]:
    """Rubric item id -> met."""
    return {verdict.id: verdict.met for verdict in scored(episode).items}


# --- the rubrics ----------------------------------------------------------------------------------------------------


@each_task
async def test_every_planted_trajectory_flips_exactly_its_own_item(task: Task):
    """Gold earns 1, each spoiled script loses its own item and no other, a violation or doing nothing earns 0."""
    gold, *spoiled = planted(task)
    perfect = await play(task, gold.completions)
    assert perfect.outcome is Outcome.AGENT_OK, perfect.error
    assert [event.tool for event in perfect.events if not event.ok] == REFUSED_IN_GOLD.get(task.id, [])
    expected = verdicts(perfect)
    forbidden = {item.id for item in task.rubric.forbidden}
    for trajectory in spoiled:
        episode = await play(task, trajectory.completions)
        found = verdicts(episode)
        flipped = {item for item in found if found[item] != expected[item]}
        assert flipped == trajectory.flips, trajectory.name
        earns_nothing = trajectory.name == "nothing" or trajectory.flips <= forbidden
        assert (scored(episode).value == 0) == earns_nothing, trajectory.name


@each_task
async def test_a_guesser_loses_subgoals_and_every_interaction(task: Task):
    """Right calls with plausible values that nobody gave earn no interaction and at most part of the subgoals."""
    reward = scored(await play(task, guessed(task)))
    assert reward.F == 1
    assert reward.I == 0
    assert reward.N < 1


@each_task
async def test_nobody_succeeds_with_a_muted_user(task: Task):
    """The same solver reaches 1 with the user, and loses subgoals and every interaction without."""
    assert scored(await play(task, honest(task))).value == 1
    muted = scored(await play(task, honest(task), MutedUser()))
    assert muted.N < 1
    assert muted.I == 0


@each_task
async def test_every_fact_is_needed_and_leaks_from_no_tool(task: Task):
    """Without one fact an interaction and what depends on it are lost, and no observation gives it away."""
    assert task.user is not None
    guesses = script(task).guesses
    for name, fact in task.user.facts.items():
        episode = await play(task, honest(task), ForgetfulUser(name))
        assert scored(episode).I < 1, name
        assert scored(episode).N < 1 or not guesses[name], name
        observed = [event.text for event in episode.events if event.kind is EventKind.CALLED]
        assert not any(occurs(fact.value, text) for text in observed), name


# --- the content ----------------------------------------------------------------------------------------------------


@each_task
def test_no_private_value_is_shown_to_the_agent(task: Task):
    """Instruction, rules and tools hold none of the facts' values."""
    assert task.user is not None
    shown = "\n".join([task.instruction, task.rules, *(orjson.dumps(tool.function).decode() for tool in task.tools)])
    assert not [name for name, fact in task.user.facts.items() if occurs(fact.value, shown)]


@each_task
async def test_vague_questions_earn_nothing(task: Task):
    """A question without a subject reveals no fact."""
    assert task.user is not None
    for message in VAGUE:
        reply = await OfflineUserSession(task.user).reply(message)
        assert reply.text == UNSURE, message


@each_task
def test_tasks_have_the_shape_of_the_paper(task: Task):
    """3-5 tools with output schemas, 5-7 workflow steps, 3-5 facts, 3-5 subgoals, 2-4 interactions, all with checks."""
    assert task.user is not None
    rubric = task.rubric
    assert 3 <= len(task.tools) <= 5
    assert all(tool.outputs for tool in task.tools)
    assert 5 <= len(task.workflow) <= 7
    assert 3 <= len(task.user.facts) <= 5
    assert rubric.forbidden
    assert 3 <= len(rubric.subgoals) <= 5
    assert 2 <= len(rubric.interactions) <= 4
    assert all(item.check for item in (*rubric.forbidden, *rubric.subgoals, *rubric.interactions))
    used = "".join(script(task).gold)
    assert any(f'"name": "{tool.name}"' not in used for tool in task.tools)
    assert any(tool.name in task.rules for tool in task.tools)


async def test_most_tasks_read_back_what_they_wrote():
    """At least 18 gold scripts read something after a write that reads differently before it."""
    reading_back = [task.id for task in TASKS if await _reads_back(task)]
    assert len(reading_back) >= 18


async def _reads_back(task: Task) -> bool:
    episode = await play(task, script(task).gold)
    untouched, written = await OfflineWorld().open(task, 0), False
    for event in episode.events:
        tool = task.tool(event.tool)
        if tool is None:
            continue
        if tool.writes:
            written = True
            continue
        before = await untouched.call(ToolCall(name=event.tool, arguments=event.arguments))
        if written and before.content != event.text:
            return True
    return False


def test_the_pack_is_broad():
    """At least 32 tasks over at least 10 domains, with splits for training, validation and the final measurement."""
    splits = Counter(task.split for task in TASKS)
    assert len(TASKS) >= 32
    assert len({task.instruction for task in TASKS}) == len(TASKS)
    assert len({task.meta["domain"] for task in TASKS}) >= 10
    assert splits[Split.TRAIN] >= 20
    assert splits[Split.VALIDATION] == 4
    assert splits[Split.HELDOUT] >= 8


# --- the scripts ----------------------------------------------------------------------------------------------------


def test_edits_apply_at_positions_of_the_gold_script():
    """Dropping, replacing and inserting do not shift each other."""
    task = TASKS[0]
    edit = {"drop": [0], "replace": {"1": "second"}, "insert": {"2": ["between", "them"]}}
    item = task.rubric.subgoals[0]
    rubric = replace(task.rubric, forbidden=(), subgoals=(item,), interactions=())
    meta = {"gold": ["a", "b", "c"], "planted": {item.id: edit}}
    spoiled = planted(replace(task, rubric=rubric, meta=meta))[1]
    assert spoiled == Planted(
        name=f"flips {item.id}", completions=("second", "between", "them", "c"), flips=frozenset({item.id})
    )


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"gold": None}, "meta.gold"),
        ({"planted": {}}, "meta.planted must name every rubric item"),
        ({"guesses": {"nobody": []}}, "meta.guesses"),
    ],
)
def test_a_script_that_does_not_fit_its_task_is_refused(change: dict[str, Any], named: str):
    """The error names the task and the field."""
    task = TASKS[0]
    with pytest.raises(ConfigError, match=re.escape(named)) as refusal:
        script(replace(task, meta={**task.meta, **change}))
    assert task.id in str(refusal.value)


@pytest.mark.parametrize("edit", [{}, {"drop": [99]}])
def test_an_edit_that_changes_nothing_is_refused(edit: dict[str, Any]):
    """An edit without a position, or beyond the script, cannot flip its item."""
    task = TASKS[0]
    item = task.rubric.subgoals[0].id
    spoiled = {**task.meta["planted"], item: edit}
    with pytest.raises(ConfigError, match=f"meta.planted.{item}"):
        script(replace(task, meta={**task.meta, "planted": spoiled}))
