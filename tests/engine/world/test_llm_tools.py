"""engine.world.llm_tools behind the mapping, over real HTTP with the scripted endpoint and with planted replies."""

import anyio
import orjson
import pytest

from engine.errors import ToolError
from engine.llm.asking import JournaledAsker
from engine.llm.journal import open_journal
from engine.packs.pack import parse_task
from engine.types import ToolCall
from engine.world.llm_tools import FrozenSimulator, LlmSimulator
from engine.world.mapped import MappedWorld
from engine.world.offline import OfflineSimulator
from engine.world.store import open_store
from tests.engine.llm.test_endpoint import answering, completion
from tests.parts.llm_parts import asking, listening, reachable
from tests.parts.worlds import NUMBER, TEXT, counted_writes, outputs, task_json, tool

pytestmark = pytest.mark.anyio


def library(**changes):
    """A task with tools that only a simulator can play, and one that the state decides."""
    tools = [
        tool("find_book", {"title": TEXT}, outputs=outputs(title=TEXT, shelf=TEXT)),
        tool("count_copies", {"title": TEXT, "year": NUMBER}, outputs=outputs(copies=NUMBER)),
        tool("reserve_book", {"title": TEXT}, outputs=outputs(code=TEXT), effect={"write": True}),
        tool("opening_hours", {}, outputs=outputs(hours=TEXT), effect={"read": "/hours"}),
    ]
    world = {"state": {"hours": "9 to 5"}}
    return parse_task(task_json(**{"id": "lib", "tools": tools, "world": world, "rubric": RUBRIC, **changes}))


RUBRIC = {"subgoals": [{"id": "s", "text": "Finds it.", "check": {"called": {"tool": "find_book"}}}]}


def call(name, **arguments):
    """A tool call."""
    return ToolCall(name=name, arguments=arguments)


def reply(answer, same_as=None, ok=True):
    """A simulator's reply."""
    form = {"ok": ok, **({"outputs": answer} if ok else answer)}
    return completion(orjson.dumps({"same_as": same_as, "answer": form}).decode())


def asked(body):
    """The document of a request."""
    return orjson.loads(body["messages"][1]["content"])


def pointable(body):
    """What a request lets the server say of `same_as`."""
    choices = body["response_format"]["json_schema"]["schema"]["properties"]["same_as"]["anyOf"]
    return [number for choice in choices for number in choice.get("enum", [None])]


class Planted:
    """A world whose simulator gives planted replies; `bodies` is what it was asked."""

    def __init__(self, tmp_path, *replies, **mode):
        self.directory, self.mode = tmp_path, mode
        self.application, self.bodies = answering(*replies)

    async def play(self, *calls, task=None):
        """The answers that one episode gets."""
        async with (
            listening(self.application) as url,
            reachable(url) as opened,
            open_journal(self.directory / "journal.sqlite") as journal,
        ):
            self.asker = JournaledAsker(journal, opened)
            self.world = MappedWorld(LlmSimulator(self.asker), **self.mode)
            session = await self.world.open(task or library(), 0)
            return [await session.call(one) for one in calls]


async def test_sixteen_episodes_with_ten_identical_calls_in_flight_cost_one_simulator_call(tmp_path):
    """Single flight; and everybody reads the same bytes."""
    async with asking(tmp_path) as asker:
        world, said = MappedWorld(LlmSimulator(asker)), []

        async def play(seed):
            session = await world.open(library(), seed)
            said.append((await session.call(call("find_book", title="Emma"))).content)

        async with anyio.create_task_group() as tasks:
            for seed in range(160):
                tasks.start_soon(play, seed % 16)
        assert asker.tallies["tool"].replies == 1
    assert len(said) == 160
    assert len(set(said)) == 1


async def test_what_the_state_decides_is_never_asked(tmp_path):
    """A declared read, and calls that do not fit their schema."""
    planted = Planted(tmp_path, reply({}))
    said = await planted.play(call("opening_hours"), call("find_book"), call("nothing"))
    assert [(one.ok, orjson.loads(one.content)) for one in said] == [
        (True, {"hours": "9 to 5"}),
        (False, {"error": "missing argument title"}),
        (False, {"error": "unknown tool nothing"}),
    ]
    assert planted.bodies == []


async def test_the_model_sees_the_world_as_it_is(tmp_path):
    """State, writes so far, the answers of this state by number, and those of others."""
    planted = Planted(
        tmp_path,
        reply({"title": "Emma", "shelf": "B2"}),
        reply({"code": "R1"}),
        reply({"title": "Emma", "shelf": "reserved"}),
    )
    emma = call("find_book", title="Emma")
    said = await planted.play(emma, call("reserve_book", title="Emma"), emma, emma)
    assert [orjson.loads(one.content).get("shelf") for one in said] == ["B2", None, "reserved", "reserved"]
    last = asked(planted.bodies[2])
    assert last["arguments"] == {"title": "Emma"}
    assert last["state"] == {"hours": "9 to 5"}
    assert last["writes"] == [{"tool": "reserve_book", "arguments": {"title": "Emma"}}]
    assert last["answers"] == []
    assert [entry["answer"] for entry in last["elsewhere"]] == [{"title": "Emma", "shelf": "B2"}, {"code": "R1"}]
    assert planted.asker.tallies["tool"].replies == 3


async def test_calls_that_mean_the_same_get_the_same_answer_and_the_verdict_is_kept(tmp_path):
    """In world.sqlite, with both keys."""
    async with open_store(tmp_path / "world.sqlite") as store:
        planted = Planted(tmp_path, reply({"title": "Emma", "shelf": "B2"}), reply({}, same_as=1), store=store)
        first, second = await planted.play(call("find_book", title="Emma"), call("find_book", title="emma, by Austen"))
        assert first.content == second.content
        assert planted.world.mapping.counts.equivalent == 1
        assert [pointable(body) for body in planted.bodies] == [[None], [1, None]]
        await store.flush()
        [merged] = [row for row in await store.load("lib") if row.source == "equivalent"]
    assert orjson.loads(merged.arguments) == {"title": "emma, by Austen"}
    assert orjson.loads(merged.same_as or "") == ["find_book", '{"title":"Emma"}']


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (call("count_copies", title="Emma", year=12), "year differs"),
        (call("count_copies", title="Emma 2", year=11), "title differs"),
    ],
)
async def test_calls_that_differ_in_a_number_are_never_the_same(tmp_path, other, said):
    """A server that takes schemas is not let; a model that says so all the same is told, and asked again."""
    planted = Planted(tmp_path, reply({"copies": 3}), reply({}, same_as=1), reply({"copies": 4}))
    _, second = await planted.play(call("count_copies", title="Emma", year=11), other)
    assert orjson.loads(second.content) == {"copies": 4}
    assert pointable(planted.bodies[1]) == [None]
    assert said in planted.bodies[2]["messages"][-1]["content"]
    assert planted.asker.tallies["tool"].refused["contradiction"] == 1


@pytest.mark.parametrize(
    ("wrong", "kind", "told"),
    [
        (reply({"title": "Emma", "shelf": "B2"}, same_as=7), "malformed", "same_as 7: no entry of find_book"),
        (reply({"outputs": {"title": "Emma", "shelf": "B2"}}, ok=False), "malformed", "answer.error: missing"),
        (reply({"title": 3, "shelf": "B2"}), "malformed", "answer.outputs.title: expected string"),
        (reply({"title": "Persuasion 2", "shelf": "B2"}), "contradiction", "title was 'Emma' in the call"),
        (completion("I found it on shelf B2."), "malformed", "it is not one JSON object"),
    ],
)
async def test_what_does_not_fit_is_not_believed(tmp_path, wrong, kind, told):
    """It never becomes an answer, and the model is told what to mend."""
    planted = Planted(tmp_path, wrong, reply({"title": "Emma", "shelf": "B2"}))
    [said] = await planted.play(call("find_book", title="Emma"))
    assert orjson.loads(said.content) == {"title": "Emma", "shelf": "B2"}
    assert planted.asker.tallies["tool"].refused == {kind: 1}
    assert told in planted.bodies[1]["messages"][-1]["content"]


async def test_an_in_world_refusal_is_an_answer_like_any_other(tmp_path):
    """With ok false, for everybody; and a write that was refused leads nowhere."""
    planted = Planted(tmp_path, reply({"error": "already reserved"}, ok=False))
    again = call("reserve_book", title="Emma")
    said = await planted.play(again, again)
    assert [(one.ok, one.content) for one in said] == [(False, '{"error":"already reserved"}')] * 2
    assert len(planted.bodies) == 1


async def test_a_simulator_that_fails_is_no_answer(tmp_path):
    """A ToolError, which the agent never sees; the next caller asks anew."""
    planted = Planted(tmp_path, completion("?"))
    with pytest.raises(ToolError, match="lib: tool simulator: 4 replies were refused"):
        await planted.play(call("find_book", title="Emma"))
    assert len(planted.world.mapping.counts) == 4
    assert planted.world.mapping.counts.simulated == 0


async def test_a_frozen_world_makes_nothing_up_and_keeps_nothing(tmp_path):
    """What is known, or decided by the state, is answered; the rest is not found."""
    emma, dune = call("find_book", title="Emma"), call("find_book", title="Dune")
    async with open_store(tmp_path / "world.sqlite") as store:
        grown = await MappedWorld(OfflineSimulator(), store).open(library(), 0)
        known = await grown.call(emma)
        await store.flush()
        before = await store.load("lib")
        frozen = await MappedWorld(FrozenSimulator(), store, mode="frozen").open(library(), 0)
        assert await frozen.call(emma) == known
        assert (await frozen.call(dune)).content == '{"error":"not found"}'
        assert (await frozen.call(call("opening_hours"))).ok
        await store.flush()
        assert await store.load("lib") == before


async def test_in_private_worlds_every_episode_has_answers_of_its_own(tmp_path):
    """Two episodes ask twice; one of them asks once."""
    async with asking(tmp_path) as asker:
        world = MappedWorld(LlmSimulator(asker), mode="private")
        for seed in (1, 2, 1):
            session = await world.open(library(), seed)
            await session.call(call("find_book", title="Emma"))
            await session.close()
        assert asker.tallies["tool"].replies == 2


BORROWED = {"write": "/borrowed/{title}", "value": {"title": "{title}"}, "requires": {"/hours": "9 to 5"}}
BORROW = call("borrow", title="Emma")


@pytest.mark.parametrize(
    ("state", "said", "ok"),
    [
        ({"hours": "9 to 5", "borrowed": {}}, [reply({"title": "emma", "code": "R1"})], True),
        ({"hours": "9 to 5", "borrowed": {}}, [reply({"error": "lent to another"}, ok=False)], False),
        ({"hours": "closed", "borrowed": {}}, [], False),
    ],
    ids=["ok", "refused by the model", "refused by the state"],
)
async def test_a_write_is_applied_once(tmp_path, monkeypatch, state, said, ok):
    """However the model answers it, and not at all for those who get its answer."""
    written = counted_writes(monkeypatch)
    borrow = tool("borrow", {"title": TEXT}, outputs=outputs(title=TEXT, code=TEXT), effect=BORROWED)
    rubric = {"subgoals": [{"id": "s", "text": "", "check": {"called": {"tool": "borrow"}}}]}
    task = library(tools=[borrow], world={"state": state}, rubric=rubric)
    planted = Planted(tmp_path, *said)
    [first] = await planted.play(BORROW, task=task)
    assert (first.ok, written) == (ok, ["borrow"])
    session = await planted.world.open(task, 1)
    assert await session.call(BORROW) == first
    assert written == ["borrow"]
    assert ((await session.close())["borrowed"] == {"Emma": {"title": "Emma"}}) is ok
    assert len(planted.bodies) == len(said)
