"""The showcase pack proves itself: each rubric item of each task is flipped by exactly its planted trajectory.

And for every task: the right steps in the wrong order, more writes than were agreed, guessing and a muted user cost
what they should; refused attempts, more reading and other words for a question cost nothing.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import orjson
import pytest

from engine.core.seams import User
from engine.errors import ConfigError
from engine.packs.pack import load_pack
from engine.synthesis.admission.play import ScriptPlayer, WithholdingUser, earned, item_verdicts
from engine.synthesis.planted import (
    Planted,
    asking,
    guessed,
    planted,
    reordered,
    script,
    sprayed,
    stumbling,
    uninformed,
)
from engine.task import Split, Task
from engine.types import Episode, Event, EventKind, Outcome, ToolCall
from engine.world.offline import OfflineWorld
from engine.world.offline_user import UNSURE, OfflineUser, OfflineUserSession
from tests.parts.places import ASSETS

PACK = ASSETS / "packs/showcase.jsonl"
TASKS = load_pack(PACK).tasks
REFUSED_IN_GOLD = {"showcase-ferry-cabin": ["book_cabin"]}
"""Where the world refuses a right call, and the agent has to ask again."""
VAGUE = (
    "Any details?",
    "Can you tell me more?",
    "Can you tell me more about it?",
    "What else?",
    "What else should I know?",
    "Is there one thing I should know?",
    "Is there anything else you would like to tell me?",
    "What do you need?",
    "What exactly do you want?",
    "What would you like?",
    "What would you like me to do?",
    "What can I do for you?",
    "How can I help you today?",
    "How does that work for you?",
    "Please give me all the information.",
    "Please give me all the information you have.",
    "Please provide the missing information.",
    "Could you be more specific?",
    "Could you confirm that?",
    "First, tell me everything.",
    "To begin with, how may I help?",
    "Let us start with the basics.",
    "Okay, let me see what I can do to help.",
    "One moment, I need to check that.",
    "No problem, I can help you with that.",
    "Thank you very much! Feel free to go on.",
    "Before I proceed, is there something I still need from you?",
    "In order to help, I will need some more information.",
)
"""Questions and phrases without a subject."""
FUNCTION_WORDS = """
    a about after again all also am an and any anything are as at be because been before being both but by can check
    could did do does doing down during each else ever every everything few first for free from further get give go
    had has have having he hello help her here hers him his how i if in into is it its just know last let like long
    many may me might mine more most much must my need no nor not now of off ok okay on once one only or other our
    ours out over own please provide right same say second see shall she should so some something start still such
    tell than thank thanks that the their them then there these they thing this those through to too two under up us
    use very want was we well were what which while who whom whose why will with work would yes you your yours
"""
"""What a keyword must not be by itself: it stands in sentences about anything. `when` and `where` ask for something."""
EARLY_CONSENT = {
    "showcase-flight-change": ("i3", "Would you accept a fare difference?"),
    "showcase-cold-courier": ("i4", "Will you accept the quote that I am going to fetch?"),
    "showcase-add-driver": ("i3", "Would you agree to pay a premium?"),
    "showcase-mixer-refund": ("i2", "Would you prefer a voucher?"),
}
"""The item that wants a price or a condition named first, and a question that has the user agree before it is."""

each_task = pytest.mark.parametrize("task", TASKS, ids=[task.id for task in TASKS])


# --- playing a script -----------------------------------------------------------------------------------------------


async def play(task: Task, says: Sequence[str], user: User | None = None) -> Episode:
    """One episode of a task through the real world, user, rubric and episode loop, in a world of its own."""
    return await ScriptPlayer(task).play(says, user)


async def honest(task: Task, user: User) -> tuple[str, ...]:
    """Follows the gold script, but guesses what this user has not said."""
    assert task.user is not None
    found, session, heard, lines = script(task), await user.open(task, 0, await OfflineWorld().open(task, 0)), "", []
    for position, completion in enumerate(found.gold):
        known = frozenset(name for name, fact in task.user.facts.items() if occurs(fact.value, heard))
        lines.append(uninformed(found, known)[position])
        if asking([completion]):
            heard += f"\n{(await session.reply(completion)).text}"
    return tuple(lines)


def muted(task: Task) -> WithholdingUser:
    """A user who understands nothing."""
    assert task.user is not None
    return WithholdingUser(frozenset(task.user.facts))


def occurs(value: Any, text: str) -> bool:
    """Whether a value stands in a text as a word."""
    return re.search(rf"(?<!\w){re.escape(str(value))}(?!\w)", text, re.IGNORECASE) is not None


def verdicts(episode: Episode) -> dict[str, bool]:
    """Rubric item id -> met."""
    return item_verdicts(earned(episode))


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
        assert (earned(episode).value == 0) == earns_nothing, trajectory.name


@each_task
async def test_the_right_steps_in_the_wrong_order_lose_exactly_those_steps(task: Task):
    """Look-ups and questions behind the writes, and read-backs before them, are worth as much as none."""
    expected = verdicts(await play(task, script(task).gold))
    interactions = {item.id for item in task.rubric.interactions}
    for trajectory in reordered(task):
        found = verdicts(await play(task, trajectory.completions))
        assert trajectory.flips, trajectory.name
        assert {item for item in found if found[item] != expected[item]} == trajectory.flips, trajectory.name
        assert trajectory.name != "asks late" or trajectory.flips == interactions


@each_task
async def test_one_write_more_than_agreed_earns_nothing(task: Task):
    """Before or after the right one, by any write tool, with any argument changed; what the world refuses is free."""
    accepted = 0
    for completions in sprayed(task):
        episode = await play(task, completions)
        writes = [
            event for event in episode.events if event.kind is EventKind.CALLED and event.ok and _writes(task, event)
        ]
        extra = len(writes) - len(_gold_writes(task))
        accepted += extra
        forbidden = [item.id for item in task.rubric.forbidden if verdicts(episode)[item.id]]
        assert (earned(episode).value == 0) == bool(extra or forbidden), completions
        assert earned(episode).value in (0, 1), completions
    assert accepted


def _writes(task: Task, event: Event) -> bool:
    tool = task.tool(event.tool)
    return tool is not None and tool.writes


def _gold_writes(task: Task) -> list[str]:
    called = [name for completion in script(task).gold for name in re.findall(r'"name": "(\w+)"', completion)]
    writing = {tool.name for tool in task.tools if tool.writes}
    return [name for name in called if name in writing][len(REFUSED_IN_GOLD.get(task.id, [])) :]


@each_task
async def test_what_is_read_besides_costs_nothing(task: Task):
    """Looking for what does not exist first, and for everything once more right before the writes, still earns 1."""
    reads = [tool for tool in task.tools if not tool.writes]
    nowhere = [
        {"name": tool.name, "arguments": dict.fromkeys(tool.parameters.get("properties", {}), "nowhere")}
        for tool in reads
    ]
    gold = script(task).gold
    names = {f'"name": "{tool.name}"' for tool in reads}
    again = [completion for completion in gold if any(name in completion for name in names)]
    first = next(n for n, completion in enumerate(gold) if "<tool_call>" in completion and completion not in again)
    calls = [f"<tool_call>{orjson.dumps(call).decode()}</tool_call>" for call in nowhere]
    assert earned(await play(task, [*calls, *gold[:first], *again, *gold[first:]])).value == 1


@each_task
async def test_refused_attempts_cost_nothing(task: Task):
    """Each write attempted without each of its arguments, then gold as it is: still 1."""
    episode = await play(task, stumbling(task))
    assert sum(not event.ok for event in episode.events if event.kind is EventKind.CALLED) >= 2
    assert earned(episode).value == 1


@pytest.mark.parametrize("task", [task for task in TASKS if task.id in EARLY_CONSENT], ids=lambda task: task.id)
async def test_agreeing_before_the_price_is_named_is_no_consent(task: Task):
    """Asked too early, the user says yes to nothing in particular: the item is lost, and no other."""
    item, question = EARLY_CONSENT[task.id]
    gold = script(task).gold
    expected = verdicts(await play(task, gold))
    found = verdicts(await play(task, [f"<question>{question}</question>", *gold]))
    assert {name for name in found if found[name] != expected[name]} == {item}


@each_task
async def test_a_guesser_loses_subgoals_and_every_interaction(task: Task):
    """Right calls with plausible values that nobody gave earn no interaction and at most part of the subgoals."""
    reward = earned(await play(task, guessed(task)))
    assert reward.F == 1
    assert reward.I == 0
    assert reward.N < 1
    assert reward.value <= 0.25


@each_task
async def test_nobody_succeeds_with_a_muted_user(task: Task):
    """The same solver reaches 1 with the user, and loses subgoals and every interaction without."""
    assert earned(await play(task, await honest(task, OfflineUser()))).value == 1
    reward = earned(await play(task, await honest(task, muted(task)), muted(task)))
    assert reward.N < 1
    assert reward.I == 0
    assert reward.value <= 0.25


@each_task
async def test_every_fact_is_needed_and_leaks_from_no_tool(task: Task):
    """Without one fact an interaction and what depends on it are lost, and no observation gives it away."""
    assert task.user is not None
    guesses = script(task).guesses
    for name, fact in task.user.facts.items():
        user = WithholdingUser(frozenset({name}))
        episode = await play(task, await honest(task, user), user)
        assert earned(episode).I < 1, name
        assert earned(episode).N < 1 or not guesses[name], name
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
def test_no_keyword_is_a_function_word(task: Task):
    """Words that stand in sentences about anything would give facts away."""
    assert task.user is not None
    for name, fact in task.user.facts.items():
        assert not set(FUNCTION_WORDS.split()) & {keyword.casefold() for keyword in fact.keywords}, name


@each_task
async def test_other_words_for_a_question_work(task: Task):
    """Every fact has at least two more questions that a person would ask; each reveals that fact alone."""
    assert task.user is not None
    found = script(task)
    for name in task.user.facts:
        questions = found.asks[name]
        assert len(set(questions) - {re.sub("<.*?>", "", completion) for completion in found.gold}) >= 2, name
        for question in questions:
            reply = await OfflineUserSession(task.user).reply(question)
            assert reply.revealed == (name,), question


@each_task
async def test_whatever_is_forbidden_can_be_met(task: Task):
    """The values that a forbidden call takes stand in what the agent is told or reads in the course of gold."""
    assert task.user is not None
    episode = await play(task, script(task).gold)
    tools = [orjson.dumps(tool.function).decode() for tool in task.tools]
    facts = [str(fact.value) for fact in task.user.facts.values()]
    met = "\n".join([task.instruction, task.rules, *tools, *facts, *(event.text for event in episode.events)])
    for item in task.rubric.forbidden:
        values = set(_literals(item.check))
        assert not [value for value in values if value.casefold() not in met.casefold()], item.id


def _literals(check: Any) -> Iterator[str]:
    """The texts that a check compares arguments with."""
    if isinstance(check, Mapping):
        for name, inner in check.items():
            if name in ("const", "enum"):
                yield from (
                    value for value in (inner if isinstance(inner, list) else [inner]) if isinstance(value, str)
                )
            else:
                yield from _literals(inner)
    elif isinstance(check, list):
        for inner in check:
            yield from _literals(inner)


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
        ({"asks": {"nobody": ["Who?"]}}, "meta.asks"),
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
