"""engine.world.vetoes: a vetoed merge is withdrawn, asked again, and never made again; what was recorded stays."""

import sqlite3
from contextlib import closing

import anyio
import orjson
import pytest

from engine.errors import ConfigError
from engine.llm.asking import JournaledAsker
from engine.llm.journal import open_journal
from engine.world.llm_tools import LlmSimulator
from engine.world.mapped import MappedWorld
from engine.world.store import MAPPING_FORMAT, open_store, read_store
from engine.world.vetoes import RecordedGroups, Vetoes, merge_id, veto
from tests.engine.llm.test_endpoint import answering
from tests.engine.world.test_llm_tools import asked, call, library, reply
from tests.parts.llm_parts import listening, reachable

pytestmark = pytest.mark.anyio

NONE = RecordedGroups(0, 0)
EMMA, AUSTEN, NOVEL = (call("find_book", title=title) for title in ("Emma", "emma, by Austen", "Emma (novel)"))
RESERVE = call("reserve_book", title="Emma")
B2, C7, D1 = ({"title": "Emma", "shelf": shelf} for shelf in ("B2", "C7", "D1"))


async def played(directory, calls, *replies, mode="grow"):
    """The shelves that an episode of a process of its own is told, and the documents that the model saw."""
    application, bodies = answering(*(replies or (reply({}),)))
    async with (
        listening(application) as url,
        reachable(url) as opened,
        open_journal(directory / "journal.sqlite") as journal,
        open_store(directory / "w.sqlite") as store,
    ):
        world = MappedWorld(LlmSimulator(JournaledAsker(journal, opened), Vetoes.of(store)), store, mode=mode)
        session = await world.open(library(), 0)
        said = [orjson.loads((await session.call(one)).content).get("shelf") for one in calls]
        await session.close()
    return said, [asked(body) for body in bodies]


async def merges(directory):
    """Ids of the merges, by the title that was asked for."""
    async with read_store(directory / "w.sqlite") as store:
        rows = [row for task in store.tasks for row in await store.load(task) if row.same_as]
        return {orjson.loads(row.arguments)["title"]: merge_id(row) for row in rows}


async def vetoed(directory, merge, *, private=False):
    """The titles of what a veto withdraws."""
    async with open_store(directory / "w.sqlite") as store:
        rows = await veto(store, merge, NONE, private=private)
    return [orjson.loads(row.arguments)["title"] for row in rows]


def titles(entries):
    """What entries of a document are about."""
    return [entry["arguments"]["title"] for entry in entries]


async def test_a_vetoed_call_is_asked_again_and_not_merged_again(tmp_path):
    """Although the journal knows the old reply; the other call's answer is context, and nothing to point at."""
    said, _ = await played(tmp_path, [EMMA, AUSTEN], reply(B2), reply({}, same_as=1))
    assert said == ["B2", "B2"]
    [merge] = (await merges(tmp_path)).values()
    assert await vetoed(tmp_path, merge[:6]) == ["emma, by Austen"]
    said, seen = await played(tmp_path, [EMMA, AUSTEN, AUSTEN], reply({}, same_as=1), reply(C7))
    assert said == ["B2", "C7", "C7"]
    assert [(titles(one["answers"]), titles(one["elsewhere"])) for one in seen] == [([], ["Emma"])] * 2
    assert await merges(tmp_path) == {}
    assert (await played(tmp_path, [EMMA, AUSTEN]))[0] == ["B2", "C7"]


async def test_what_came_from_a_vetoed_answer_goes_too(tmp_path):
    """It is asked again, and may be merged once more; the vetoed call does not get the old answer through it."""
    first = [reply(B2), reply({}, same_as=1), reply({}, same_as=2), reply({"code": "R1"})]
    await played(tmp_path, [EMMA, AUSTEN, NOVEL, RESERVE], *first)
    found = await merges(tmp_path)
    assert set(await vetoed(tmp_path, found["emma, by Austen"])) == {"emma, by Austen", "Emma (novel)"}
    said, seen = await played(tmp_path, [AUSTEN, NOVEL], reply(C7), reply({}, same_as=1))
    assert titles(seen[0]["answers"]) == ["Emma"]
    assert titles(seen[1]["answers"]) == ["Emma", "emma, by Austen", "Emma"]
    assert said == ["C7", "B2"]


async def test_the_pair_is_apart_in_every_state_and_from_both_sides(tmp_path):
    """After a write the other call comes first: it is no answer to point at either, nor what has its answer."""
    await played(tmp_path, [EMMA, AUSTEN], reply(B2), reply({}, same_as=1))
    await vetoed(tmp_path, (await merges(tmp_path))["emma, by Austen"])
    replies = [reply({"code": "R1"}), reply(C7), reply({}, same_as=1), reply(D1)]
    said, seen = await played(tmp_path, [RESERVE, AUSTEN, NOVEL, EMMA], *replies)
    assert said == [None, "C7", "C7", "D1"]
    assert titles(seen[3]["answers"]) == []
    assert {"emma, by Austen", "Emma (novel)"} <= set(titles(seen[3]["elsewhere"]))


async def test_merges_of_the_pair_in_other_states_are_withdrawn_with_it(tmp_path):
    """A verdict about words holds in all states."""
    replies = [reply(B2), reply({}, same_as=1), reply({"code": "R1"}), reply(C7), reply({}, same_as=1)]
    await played(tmp_path, [EMMA, AUSTEN, RESERVE, AUSTEN, EMMA], *replies)
    async with open_store(tmp_path / "w.sqlite") as store:
        merge = next(merge_id(row) for row in await store.load("lib") if row.same_as)
        withdrawn = await veto(store, merge, NONE, private=False)
        assert len(withdrawn) == 2
        assert [row for _, row in store.withdrawn] == withdrawn
        assert not [row for row in await store.load("lib") if row.same_as]


async def test_a_veto_in_a_private_world_is_about_the_task(tmp_path):
    """Every episode has answers of its own; no later one merges the two."""
    await played(tmp_path, [EMMA, AUSTEN], reply(B2), reply({}, same_as=1), mode="private")
    await vetoed(tmp_path, (await merges(tmp_path))["emma, by Austen"], private=True)
    async with read_store(tmp_path / "w.sqlite") as store:
        assert [made.task for made in store.vetoes] == ["lib"]
    said, _ = await played(tmp_path, [EMMA, AUSTEN], reply(C7), mode="private")
    assert said == ["B2", "C7"]


async def test_a_second_veto_asks_a_third_time(tmp_path):
    """The answer was taken from another call meanwhile."""
    await played(tmp_path, [EMMA, AUSTEN], reply(B2), reply({}, same_as=1))
    await vetoed(tmp_path, (await merges(tmp_path))["emma, by Austen"])
    said, _ = await played(tmp_path, [NOVEL, AUSTEN], reply(C7), reply({}, same_as=1))
    assert said == ["C7", "C7"]
    await vetoed(tmp_path, (await merges(tmp_path))["emma, by Austen"])
    said, _ = await played(tmp_path, [EMMA, NOVEL, AUSTEN], reply(D1))
    assert said == ["B2", "C7", "D1"]


async def test_a_merge_that_is_not_there_is_named(tmp_path):
    """Unknown, withdrawn, or too short; nothing is changed then."""
    await played(tmp_path, [EMMA, AUSTEN, NOVEL], reply(B2), reply({}, same_as=1), reply({}, same_as=1))
    merge = (await merges(tmp_path))["Emma (novel)"]
    with pytest.raises(ConfigError, match="there is no merge xyz"):
        await vetoed(tmp_path, "xyz")
    with pytest.raises(ConfigError, match="the beginning of several merges"):
        await vetoed(tmp_path, "")
    await vetoed(tmp_path, merge)
    with pytest.raises(ConfigError, match="was withdrawn already"):
        await vetoed(tmp_path, merge)
    assert len(await merges(tmp_path)) == 1


def test_a_database_of_before_vetoes_is_refused(tmp_path):
    """With the remedy; it would not know what was withdrawn."""
    made = f"CREATE TABLE entries (task); PRAGMA application_id={0x53594E57}; PRAGMA user_version=1"
    with closing(sqlite3.connect(tmp_path / "w.sqlite")) as connection:
        connection.executescript(made)
    with pytest.raises(
        ConfigError, match=f"format 1, this version reads {MAPPING_FORMAT}; continue the run with the version"
    ):
        anyio.run(merges, tmp_path)
