"""What crosses a seam is nobody's to change: a world, a user or a scorer of somebody's own changes no record."""

import copy
from dataclasses import replace

import anyio
import orjson
import pytest

from engine.packs.pack import parse_task
from engine.reward.rubric import RubricScorer
from engine.schema.frozen import frozen
from engine.stream.reader import iter_groups
from engine.types import Event, EventKind, Observation, Outcome, Reply
from engine.verify.run import verify_run
from engine.world.mapped import MappedWorld
from engine.world.tools import OfflineSimulator
from tests.parts.agenticqwen_plays import offline, play
from tests.parts.played_runs import EPISODES, packed, recorded
from tests.parts.worlds import TEXT, task_json, tool

pytestmark = pytest.mark.anyio

ANN = {"type": "object", "properties": {"mentions": {"const": ["ann"]}}}
NESTED = {"type": "object", "properties": {"filter": {"const": {"by": {"name": "ann"}}}}}


def posting(check, **changes):
    """A task with tools that take lists and objects, scored by the arguments of a call."""
    names = {"type": "array", "items": TEXT}
    tools = [tool("post", {"mentions": names}), tool("mention", {"names": names}), tool("find", {"filter": {}})]
    rubric = {"subgoals": [{"id": "s", "text": "", "check": check}]}
    return parse_task(task_json(**{"id": "post", "tools": tools, "rubric": rubric, "world": {}, **changes}))


def called(name, **arguments):
    """A completion with one call."""
    return f"<tool_call>{orjson.dumps({'name': name, 'arguments': arguments}).decode()}</tool_call>"


POSTED = (called("post", mentions=["ann"]), called("mention", names=["bob"]), "<answer>ok</answer>")
FOUND = (called("find", filter={"by": {"name": "ann"}}), "<answer>ok</answer>")
DONE = {"called": {"tool": "post", "arguments": ANN}}


class Answering:
    """A world of somebody's own; `self.state` is what `close` gives, and all of its episodes share it."""

    def __init__(self):
        self.state = {"seen": []}

    async def open(self, task, seed):
        self.task = task
        return self

    async def call(self, call):
        self.touch(call)
        return Observation(content="{}", ok=True)

    async def close(self):
        return self.state


class Keeping(Answering):
    """Keeps the list that it was given, and adds to it in a later call, as BFCL's own back ends do."""

    def touch(self, call):
        if call.name == "post":
            self.kept = call.arguments["mentions"]
        else:
            self.kept += call.arguments["names"]


class Digging(Answering):
    """Changes an object inside its arguments, and then the arguments."""

    def touch(self, call):
        call.arguments["filter"]["by"].pop("name")
        call.arguments.clear()


class Counting(Answering):
    """Writes every call into a state that it gave away before."""

    def touch(self, call):
        self.state["seen"].append(call.name)


class Writing(Answering):
    """Takes the task's own state for the state of an episode."""

    def touch(self, call):
        self.task.world.state["orders"]["old"] = call.name


async def test_a_world_that_keeps_its_arguments_changes_no_event():
    """The call is scored, and recorded, as the agent made it."""
    episode = await play(posting(DONE), POSTED, replace(offline(), world=Keeping()))
    assert [dict(event.arguments) for event in episode.events[:2]] == [{"mentions": ["ann"]}, {"names": ["bob"]}]
    assert episode.reward.value == 1


async def test_a_world_that_changes_what_is_inside_its_arguments_changes_no_event():
    """At any depth."""
    task = posting({"called": {"tool": "find", "arguments": NESTED}})
    episode = await play(task, FOUND, replace(offline(), world=Digging()))
    assert episode.events[0].arguments == {"filter": {"by": {"name": "ann"}}}
    assert episode.reward.value == 1


async def test_two_calls_of_one_completion_share_nothing():
    """Each is given arguments of its own, and so is the session behind a fault profile."""
    episode = await play(posting(DONE), (POSTED[0] + POSTED[1], POSTED[2]), replace(offline(), world=Keeping()))
    assert [dict(event.arguments) for event in episode.events[:2]] == [{"mentions": ["ann"]}, {"names": ["bob"]}]


async def test_a_final_state_stays_as_it_was_at_the_end_of_its_episode():
    """Whatever later episodes make of it before the group is written."""
    seams = replace(offline(), world=Counting())
    episodes = [await play(posting(DONE), POSTED, seams) for _ in range(2)]
    assert [episode.final_state for episode in episodes] == [
        {"seen": ["post", "mention"]},
        {"seen": ["post", "mention"] * 2},
    ]


async def test_a_world_cannot_change_the_state_of_its_task():
    """It is told so, and that a copy can be changed; the next episode begins with what the pack says."""
    task = posting(DONE, world={"state": {"orders": {"old": 1}}})
    episode = await play(task, POSTED, replace(offline(), world=Writing()))
    assert episode.outcome is Outcome.TOOL_FAULT
    assert "shared by all episodes and cannot be changed; change a copy.deepcopy of it" in episode.error
    assert task.world.state == {"orders": {"old": 1}}
    other = await play(task, POSTED)
    assert other.final_state == {"orders": {"old": 1}}


class Spoiling:
    """A scorer that changes everything that it is given, after the rubric's."""

    async def score(self, record):
        reward = await RubricScorer().score(record)
        for message in record.messages:
            message["content"] = "gone"
        for event in record.events:
            event.arguments.clear()
        record.messages.clear()
        record.events.append(Event(number=9, turn=9, kind=EventKind.ANSWERED, text="gone"))
        record.final_state["orders"] = "gone"
        return reward


@pytest.mark.parametrize("again", [False, True], ids=["first", "sibling"])
async def test_a_scorer_changes_nothing_of_what_is_recorded(again):
    """Not in its episode, nor in those that share its prompt and its world's states."""
    task = posting(DONE, world={"state": {"orders": {"old": 1}}})
    seams = replace(offline(), world=MappedWorld(OfflineSimulator()))
    honest = await play(task, POSTED, seams)
    spoiled = await play(task, POSTED, replace(seams, scorer=Spoiling()))
    if again:
        spoiled = await play(task, POSTED, seams)
    assert spoiled.messages == honest.messages
    assert spoiled.events == honest.events
    assert spoiled.final_state == honest.final_state == {"orders": {"old": 1}}


class Accumulating:
    """A scorer that goes on with its list of verdicts."""

    def __init__(self):
        self.items = []

    async def score(self, record):
        reward = await RubricScorer().score(record)
        self.items += reward.items
        return replace(reward, items=self.items)


async def test_a_scorer_that_keeps_its_verdicts_changes_no_earlier_reward():
    """Each episode has those that it was given."""
    seams = replace(offline(), scorer=Accumulating())
    episodes = [await play(posting(DONE), POSTED, seams) for _ in range(2)]
    assert [len(episode.reward.items) for episode in episodes] == [1, 2]


class Remembering:
    """A user who goes on with the list of what it revealed."""

    def __init__(self):
        self.revealed = []

    async def open(self, task, seed, session):
        return self

    async def reply(self, message):
        self.revealed.append(message)
        return Reply(text="Yes.", revealed=self.revealed)


async def test_a_user_that_keeps_its_list_of_facts_changes_no_event():
    """What was revealed in a turn stays what it was then."""
    lines = ("<question>item</question>", "<question>quantity</question>", "<answer>ok</answer>")
    episode = await play(posting(DONE), lines, replace(offline(), user=Remembering()))
    assert [event.revealed for event in episode.events[:2]] == [("item",), ("item", "quantity")]


class Popping:
    """A world that takes its arguments out of the call, and writes them into the state that it began with."""

    async def open(self, task, seed):
        return Popped(copy.deepcopy(task.world.state))


class Popped:
    """One episode of it."""

    def __init__(self, state):
        self.state = state

    async def call(self, call):
        self.state[call.name] = {name: call.arguments.pop(name) for name in list(call.arguments)}
        return Observation(content="{}", ok=True)

    async def close(self):
        return self.state


def test_a_recorded_run_has_the_calls_as_they_were_made(tmp_path):
    """On disk, and when it is executed again."""
    run = recorded(tmp_path, packed(tmp_path / "shops.jsonl"), **{"world.kind": f"{__name__}:Popping"})
    events = [
        event for group in iter_groups(run.trajectories) for episode in group.episodes for event in episode.events
    ]
    made = {event.tool: event.arguments for event in events if event.kind is EventKind.CALLED}
    assert made["place_order"] == {"item": " apple ", "quantity": 5.0}
    assert made["shop_hours"] == {"day": "Monday"}
    verified = anyio.run(verify_run, run, (), lambda *_: None)
    assert (verified.identical, verified.sound) == (EPISODES, True)


VALUE = {"a": [1, {"b": [2]}], "c": {"d": None}}


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value.update(a=1),
        lambda value: value["a"].append(3),
        lambda value: value["a"][1].pop("b"),
        lambda value: value["a"][1]["b"].__setitem__(0, 3),
        lambda value: value["c"].setdefault("e", 1),
        lambda value: value.__ior__({"c": 1}),
    ],
)
def test_a_frozen_value_cannot_be_changed_and_its_copies_can(change):
    """It is JSON in every other way, and equal to what it was made of."""
    value = frozen(VALUE)
    with pytest.raises(TypeError, match=r"change a copy\.deepcopy of it"):
        change(value)
    assert value == VALUE
    assert orjson.dumps(value) == orjson.dumps(VALUE)
    mine = copy.deepcopy(value)
    change(mine)
    assert mine != VALUE


async def test_a_scorer_sees_every_event_as_it_was():
    """Each field of it; only the arguments are copies."""
    seen = []

    class Looking:
        async def score(self, record):
            seen.extend(record.events)
            return await RubricScorer().score(record)

    episode = await play(posting(DONE), POSTED, replace(offline(), scorer=Looking()))
    assert tuple(seen) == episode.events
    assert all(mine.arguments is not theirs.arguments for mine, theirs in zip(seen, episode.events, strict=True))
