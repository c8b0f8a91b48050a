"""engine.attach: real clients on a real socket, beside episodes that are really played."""

import os
import random
import signal
import socket
import stat
import subprocess
import sys
import time

import anyio
import anyio.lowlevel
import orjson
import pytest

from engine.attach import server as attached
from engine.attach.server import Attach
from engine.config.load import load
from engine.core.live import LiveEpisodes
from engine.preflight.manifest import create
from engine.rundir.layout import RunDir
from engine.telemetry.looplag import LAG_EDGES_S
from engine.telemetry.window import PHASES, Selection, WindowRow
from engine.types import Episode, Outcome
from tests.engine.telemetry.test_window import some
from tests.parts.children import child
from tests.parts.live_episodes import LISTS, Client, Gated, followed, huge, looked_at, played, seams_of
from tests.parts.waiting import LONG_S, until


async def test_the_whole_table_is_one_question(tmp_path):
    """Rows in the order of their fields, counts that sum to all, and the socket is the owner's alone."""
    live, policy = LiveEpisodes(), Gated()
    async with looked_at(tmp_path, live) as connect, anyio.create_task_group() as tg:
        for number in range(5):
            tg.start_soon(played, f"g000001.{number:02d}", seams_of(policy, live))
        policy.go("g000001.03")
        await until(lambda: live.phases["policy"] == 4 and live.phases["done"] == 1)
        client = await connect()
        answer = await client.ask()
        assert set(answer) == {"v", "clock", "phases", "total", "rows", "rewards", "episodes"}
        assert answer["phases"] == {**dict.fromkeys(PHASES, 0), "policy": 4, "done": 1}
        assert (answer["v"], answer["total"], answer["rewards"], answer["episodes"]) == (1, 5, [0] * 20, {})
        rows = [WindowRow(*row) for row in answer["rows"]]
        assert {row.id for row in rows} == {f"g000001.{number:02d}" for number in range(5)}
        assert [row.id for row in rows if row.phase == "done" and row.reward is not None] == ["g000001.03"]
        filtered = await client.ask(where="phase=policy", sort="id", down=False, top=1, rows=2)
        assert [row[0] for row in filtered["rows"]] == ["g000001.01", "g000001.02"]
        assert filtered["total"] == 4
        assert (await client.ask(grouped=True))["rows"][4][0] == "g000001.04"
        assert stat.S_IMODE((await anyio.Path(tmp_path / "engine.sock").stat()).st_mode) == 0o600
        tg.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "the question is not JSON"),
        (b"{", "the question is not JSON"),
        (b'"\\ud800"', "the question is not JSON"),
        (b"\xff\xfe", "the question is not JSON"),
        (b"[" * 4_000, "the question is not JSON"),
        (b"[]", "the question is not a JSON object"),
        (b'{"v":1,"color":"red"}', "the question's color: Extra inputs are not permitted"),
        (b'{"v":1,"rows":"many"}', "the question's rows: Input should be a valid integer"),
        (b'{"v":1,"rows":-1}', "the question's rows: Input should be greater than or equal to 0"),
        (b'{"v":1,"rows":1e99}', "the question's rows: Input should be a valid integer"),
        (b'{"v":1,"top":1.5}', "the question's top: Input should be a valid integer"),
        (b'{"v":1,"down":1}', "the question's down: Input should be a valid boolean"),
        (b'{"v":1,"where":null}', "the question's where: Input should be a valid string"),
        (b'{"v":1,"where":"colour=red"}', "filter 'colour=red': there is no field colour; there are"),
        (b'{"v":1,"sort":"colour"}', "there is no field colour to sort by"),
        (b'{"v":1,"follow":{}}', "the question's follow: Input should be a valid list"),
        (b'{"v":1,"follow":[{"id":7}]}', "the question's follow.0.id: Input should be a valid string"),
        (
            b'{"v":1,"follow":[{"id":"g","have":{"ids":-1}}]}',
            "the question's follow.0.have.ids: Input should be greater",
        ),
        (
            b'{"v":1,"follow":[' + b",".join([b'{"id":"g"}'] * 17) + b"]}",
            "the question's follow: List should have at most",
        ),
        (b'{"v":1,"cancel":7}', "the question's cancel: Input should be a valid string"),
        (b'{"v":1,"cancel":"g","rows":6}', "the question's rows: Extra inputs are not permitted"),
        (b'{"v":1,"' + b"x" * 4_000 + b'":1}', "the question's xxx"),
    ],
)
async def test_a_question_that_is_none_gets_a_sentence(tmp_path, content, sentence):
    """And the next one its answer."""
    live = LiveEpisodes()
    async with looked_at(tmp_path, live) as connect:
        client = await connect()
        await client.send(content)
        answer = await client.answer()
        assert answer["v"] == 1
        assert answer["error"].startswith(sentence)
        assert (await client.ask())["total"] == 0


async def test_no_question_hurts_the_engine(tmp_path, monkeypatch):
    """Thousands of odd ones: each gets an answer, or the connection closed, and the server stays."""
    monkeypatch.setattr(attached, "_PER_SECOND", 10_000)
    dice, live = random.Random(5), LiveEpisodes()
    for one in some(30):
        live.enter(one)
    live.enter(huge("g1", "x"))
    odd = [
        None,
        True,
        -1,
        0,
        2**63,
        2**64 - 1,
        1.5,
        "",
        "g1",
        "\x00",
        "tokens",
        [],
        {},
        ["g1"],
        {"id": "g1"},
        [{"id": "g1"}],
    ]
    keys = ("v", "where", "sort", "down", "grouped", "top", "rows", "follow", "cancel", "have")
    big = {"id": "g1", "have": dict.fromkeys(LISTS, 2**64 - 1)}
    async with looked_at(tmp_path, live) as connect:
        client = await connect()
        for _ in range(1_500):
            question = {"v": 1} | {dice.choice(keys): dice.choice([*odd, [big]]) for _ in range(dice.randrange(4))}
            await client.send(orjson.dumps(question))
            answer = await client.answer()
            assert set(answer) & {"error", "said", "total"}
            if question["v"] != 1:
                assert answer["error"].startswith("the engine speaks protocol 1")
                assert await client.hung_up()
                client = await connect()
        assert (await client.ask(follow=followed("g1")))["total"] == 31


async def test_another_protocol_is_told_both_versions(tmp_path):
    """And the connection is closed."""
    async with looked_at(tmp_path, LiveEpisodes()) as connect:
        for version in (2, None, "1"):
            client = await connect()
            error = (await client.ask(v=version))["error"]
            assert error.startswith(
                f"the engine speaks protocol 1, the question protocol {version}: use the synth-engine"
            )
            assert await client.hung_up()


async def test_a_question_that_is_too_long_is_not_read(tmp_path):
    """It is told so, and the connection is closed; one of 4,096 bytes is read."""
    async with looked_at(tmp_path, LiveEpisodes()) as connect:
        client = await connect()
        assert (await client.ask(where=f"task~{'x' * 4_070}"))["total"] == 0
        await client.send(b'{"v":1}'.ljust(4_097))
        assert (await client.answer())["error"] == "the question has 4,097 bytes, and at most 4,096 are read"
        assert await client.hung_up()


async def test_a_torn_question_is_not_waited_for_for_ever(tmp_path, monkeypatch):
    """Whoever hangs up in the middle, or says no more, is gone; an idle client stays, and so do the others."""
    monkeypatch.setattr(attached, "_PATIENCE_S", 0.2)
    async with looked_at(tmp_path, LiveEpisodes()) as connect:
        idle = await connect()
        assert "total" in await idle.ask()
        for beginning in (b"", b"\0", b"\0\0\0\x20", b"\0\0\0\x20{"):
            client = await connect()
            await client.stream.send(beginning or b"\0\0")
            await client.stream.aclose()
        for beginning in (b"\0", b"\0\0\0\x20", b"\0\0\0\x20{"):
            silent = await connect()
            await silent.stream.send(beginning)
            assert await silent.hung_up()
        await anyio.sleep(0.3)
        assert "total" in await idle.ask()


async def test_a_client_that_does_not_read_is_closed(tmp_path, monkeypatch):
    """Once its answers fill the socket and it has had its time; another is answered all the while."""
    monkeypatch.setattr(attached, "_PATIENCE_S", 1.0)
    monkeypatch.setattr(attached, "_PER_SECOND", 10_000)
    live, closed, answered = LiveEpisodes(), anyio.Event(), 0
    live.enter(huge("g1", "x", ids=60_000))
    content = orjson.dumps({"v": 1, "follow": followed("g1")})
    async with looked_at(tmp_path, live) as connect:
        slow, other = await connect(), await connect()

        async def flood():
            for _ in range(500):
                await slow.send(content)
                await anyio.sleep(0.005)

        async def flood_until_closed():
            with pytest.raises(anyio.BrokenResourceError):
                await flood()
            closed.set()

        async with anyio.create_task_group() as tg:
            tg.start_soon(flood_until_closed)
            while not closed.is_set():
                assert (await other.ask(rows=5))["total"] == 1
                answered += 1
                await anyio.sleep(0.01)
    # One that waited for the slow one would have been answered once.
    assert answered > 3


async def test_a_fifth_client_is_told_and_closed(tmp_path):
    """Until one of the four leaves."""
    async with looked_at(tmp_path, LiveEpisodes()) as connect:
        four = [await connect() for _ in range(4)]
        for client in four:
            assert "total" in await client.ask()
        for _ in range(3):
            fifth = await connect()
            assert (await fifth.ask())["error"] == "4 clients look at this run already: close one of them"
            assert await fifth.hung_up()
        await four[0].stream.aclose()

        async def welcome():
            return "total" in await (await connect()).ask()

        await until(welcome)
        assert "total" in await four[3].ask()


async def test_the_eleventh_question_in_a_second_waits(tmp_path):
    """Ten are answered at once; those of another client do not wait for it."""
    async with looked_at(tmp_path, LiveEpisodes()) as connect:
        eager, other = await connect(), await connect()
        began_s = anyio.current_time()
        for _ in range(11):
            await eager.send(b'{"v":1}')
        for _ in range(10):
            await eager.answer()
        answered = []

        async def eleventh():
            await eager.answer()
            answered.append(anyio.current_time())

        async with anyio.create_task_group() as tg:
            tg.start_soon(eleventh)
            await other.ask()
            assert answered == []
    assert answered[0] - began_s > 0.95


async def test_an_episode_is_cancelled_on_request(tmp_path):
    """With a sentence on what becomes of it; the others go on."""
    live, policy, results = LiveEpisodes(), Gated(), {}

    async def play(episode_id):
        results[episode_id] = await played(episode_id, seams_of(policy, live))

    async with looked_at(tmp_path, live) as connect, anyio.create_task_group() as tg:
        client = await connect()
        assert await client.ask(cancel="g000001.00") == {"v": 1, "said": "g000001.00 is not in flight"}
        for episode_id in ("g000001.00", "g000001.01"):
            tg.start_soon(play, episode_id)
        await until(lambda: live.phases["policy"] == 2)
        said = (await client.ask(cancel="g000001.00"))["said"]
        assert said == "g000001.00 is being cancelled: it is recorded as infra_error, and not trained on"
        await until(lambda: "g000001.00" in results)
        again = (await client.ask(cancel="g000001.00"))["said"]
        assert again == "g000001.00 has ended already, as infra_error"
        told = (await client.ask(follow=followed("g000001.00")))["episodes"]["g000001.00"]
        assert (told["stop"], told["error"]) == ("cancelled", "g000001.00: cancelled by an operator")
        assert WindowRow(*told["row"]).outcome == "infra_error"
        policy.go("g000001.01")
    assert results["g000001.00"].outcome is Outcome.INFRA_ERROR
    assert isinstance(results["g000001.01"], Episode)
    assert results["g000001.01"].outcome.scored


async def test_a_stale_file_is_replaced_and_the_socket_is_removed(tmp_path):
    """A killed engine leaves its socket behind."""
    path = tmp_path / "engine.sock"
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()
    assert await anyio.Path(path).is_socket()
    async with looked_at(tmp_path, LiveEpisodes()) as connect:
        client = await connect()
        assert "total" in await client.ask()
    assert not await anyio.Path(path).exists()


def test_where_no_socket_can_be_made_the_run_goes_on(tmp_path):
    """What is there is no socket, and is left alone."""
    (tmp_path / "engine.sock").write_text("mine")
    anyio.run(Attach(RunDir(tmp_path), LiveEpisodes(), time.monotonic).serve)
    assert (tmp_path / "engine.sock").read_text() == "mine"


async def test_ten_thousand_episodes_are_looked_at_piece_by_piece(tmp_path, monkeypatch):
    """Between two turns of the loop no more than 500 are looked at; of the default table only those that it shows."""
    live, looked, turns = LiveEpisodes(), [], [0]
    for one in some(10_000):
        live.enter(one)
    add = Selection.add

    def counting(selection, part):
        looked.append((turns[0], len(part)))
        add(selection, part)

    async def turn():
        while True:
            turns[0] += 1
            await anyio.lowlevel.checkpoint()

    monkeypatch.setattr(Selection, "add", counting)
    async with looked_at(tmp_path, live) as connect, anyio.create_task_group() as tg:
        tg.start_soon(turn)
        client = await connect()
        shown = await client.ask(top=100, rows=40)
        assert (shown["total"], len(shown["rows"])) == (10_000, 40)
        assert [size for _, size in looked] == [140]
        for question in ({"where": "turn>=0"}, {"sort": "tokens"}, {"grouped": True}, {"down": False}):
            looked.clear()
            assert (await client.ask(**question))["total"] == 10_000
            assert [size for _, size in looked] == [500] * 20
            assert len({turn for turn, _ in looked}) == 20
        tg.cancel_scope.cancel()


async def test_the_default_table_is_what_a_search_would_find(tmp_path):
    """Also where it reaches those that have ended."""
    live = LiveEpisodes()
    for one in sorted(some(300), key=lambda one: one.start_s):
        phase, one.phase = one.phase, "queued"
        live.enter(one)
        live.moved(one, phase)
        one.phase = phase
    async with looked_at(tmp_path, live) as connect:
        client = await connect()
        for top in (0, 17, 190, 240, 299, 400):
            found = await client.ask(where="turn>=0", top=top, rows=30)
            shown = await client.ask(top=top, rows=30)
            ids = [row[0] for row in shown["rows"]]
            assert (ids, shown["total"]) == ([row[0] for row in found["rows"]], 300)


async def test_tools_and_delays_are_told_to_who_asks(tmp_path):
    """A name that an agent made up is cut like every other text."""
    live = LiveEpisodes()
    live.stages.called("get_order", 0.25, broken=False)
    live.stages.called("x" * 10_000, 0.5, broken=True)
    async with looked_at(tmp_path, live) as connect:
        answer = await (await connect()).ask(stages=True)
    assert answer["tools"][0] == ["get_order", 1, 0, 0, 0.25, 0.25]
    assert len(answer["tools"][1][0]) < 500
    assert len(answer["lag"]) == len(LAG_EDGES_S) + 1


@pytest.mark.slow
def test_the_engine_process_listens_while_it_runs(tmp_path):
    """A real one: it is asked while it plays, and a drain removes the socket."""
    settings = ["run.steps=50", "eval.every=0", "eval.heldout_tasks=0", f"run.dir={tmp_path}", "stream.low_water_mb=10"]
    run = create(load("dry", settings).config)
    run.adapter(0).mkdir()
    command = [sys.executable, "-m", "engine.run", str(run.path)]
    with child(*command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as engine:
        answer = anyio.run(first_episodes, run)
        assert sum(answer["phases"].values()) >= answer["total"] > 0
        assert answer["rows"]
        os.kill(engine.pid, signal.SIGTERM)
        assert engine.wait(LONG_S) == 0
        assert not run.socket.exists()


async def first_episodes(run):
    """The first answer that has episodes."""

    async def asked():
        try:
            stream = await anyio.connect_unix(run.path / "engine.sock")
        except OSError:
            return None
        async with stream:
            answer = await Client(stream).ask()
        return answer if answer["total"] else None

    return await until(asked, LONG_S)
