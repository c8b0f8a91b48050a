"""tui.live: snapshots of a run in flight over a real socket, and what is told when its engine is slow or gone."""

import os
import shutil
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict

import anyio
import orjson
import psutil
import pytest
from anyio.streams.buffered import BufferedByteReceiveStream

from engine.errors import ConfigError
from engine.rundir.layout import RunDir, read_json, write_json
from engine.telemetry.stages import ToolRow
from engine.telemetry.window import Window
from engine.types import Event, EventKind, Reward, Span, TurnTiming
from tests.parts.incomplete_runs import cut
from tests.parts.looking import all_read, aside, look_until, looking, may_listen, reads_little
from tests.parts.recorded_runs import GROUP_SIZE, RecordedRun, small_pack
from tui.snapshot import SnapshotQuery

QUIET = {"v": 1, "clock": 12.5, "phases": {"policy": 2}, "total": 2, "rows": [], "rewards": [1] * 20, "episodes": {}}
ROW = ["g000003.01", "g000003", "shop-1", "tool", 2, 30, 4.5, 1.5, 7, None, ""]


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A recorded run."""
    base = tmp_path_factory.mktemp("kept")
    return RecordedRun.make(base / "runs", small_pack(base / "small.jsonl")).write()


@pytest.fixture
def run(kept, tmp_path):
    """A copy of it that this process works on, as supervisor and engine."""
    shutil.copytree(kept.path, tmp_path / "r")
    run = RunDir(tmp_path / "r")
    working(run)
    return run


def working(run, phase="training", off_s=0.0, ending=None, *, engine=True):
    """Who works on a run: this process, or with `off_s` one that had its pid before."""
    started = psutil.Process().create_time() + off_s
    rows = [{"name": name, "pid": os.getpid(), "started": started, "argv": []} for name in ("server-0", "engine")]
    own = {"supervisor": os.getpid(), "supervisor_started": started, "ending": ending}
    write_json(run.processes, {**own, "processes": [] if ending else rows[: 1 + engine]})
    write_json(run.path / "phase.json", {"phase": phase, "history": [{"phase": phase, "start_s": 0.0}]})


@pytest.fixture(autouse=True)
def _listening(blockbuster):
    may_listen(blockbuster)


@pytest.fixture(autouse=True)
def _busy(monkeypatch):
    reads_little(monkeypatch)


@asynccontextmanager
async def engine(run, script):
    """A listener that answers each question with what `script` makes of it; after raw bytes it hangs up.

    Yields the questions; at the end it is gone as a killed one is, its file still there."""
    questions = []

    async def serve(stream):
        received = BufferedByteReceiveStream(stream)
        async with stream:
            with suppress(anyio.IncompleteRead, anyio.EndOfStream, anyio.BrokenResourceError):
                while True:
                    size = int.from_bytes(await received.receive_exactly(4), "big")
                    questions.append(orjson.loads(await received.receive_exactly(size)))
                    answer = await script(questions[-1])
                    await stream.send(answer if isinstance(answer, bytes) else framed(answer))
                    if isinstance(answer, bytes):
                        return

    await aside(lambda: run.socket.unlink(missing_ok=True))
    async with await anyio.create_unix_listener(run.socket) as listener, anyio.create_task_group() as tg:
        tg.start_soon(listener.serve, serve)
        yield questions
        tg.cancel_scope.cancel()


def framed(answer):
    """As it goes over the wire."""
    content = orjson.dumps(answer)
    return len(content).to_bytes(4, "big") + content


async def quiet(question):
    """An engine with two episodes that nobody follows."""
    return QUIET


async def test_tools_and_delays_are_asked_for(run):
    """By the screen that shows them."""

    async def script(question):
        told = {"tools": [["get_order", 3, 1, 0, 0.1, 0.2]], "lag": [5, 4, 3, 2, 1]}
        return QUIET | (told if question["stages"] else {})

    async with engine(run, script), looking(run) as source:
        seen, without = await source.look(SnapshotQuery(stages=True)), await source.look(SnapshotQuery())
    assert seen.tools == (ToolRow("get_order", 3, 1, 0, 0.1, 0.2),)
    assert seen.lags == (5, 4, 3, 2, 1)
    assert (without.tools, without.lags, without.note) == ((), (), "")


async def test_an_answer_and_the_files(run):
    """Rows, counts and clock are the engine's; step, phase, charts are the files'; the question says what is wanted."""

    async def script(question):
        return QUIET | {"rows": [ROW]}

    window = Window(where="phase=tool", sort="turn", down=False, grouped=True, top=3, rows=9)
    async with engine(run, script) as questions, looking(run) as source:
        seen = await source.look(SnapshotQuery(window=window))
    assert (seen.state, seen.clock_s, seen.total, seen.note) == ("live", 12.5, 2, "")
    assert seen.rows[0].id == "g000003.01"
    assert seen.rows[0].wait_s == 1.5
    assert (seen.phases, seen.rewards, seen.window) == ({"policy": 2}, (1,) * 20, window)
    assert (seen.step, seen.phase, len(seen.engine), len(seen.swaps)) == (3, "training", 4, 8)
    assert questions == [
        {
            "v": 1,
            "where": "phase=tool",
            "sort": "turn",
            "down": False,
            "grouped": True,
            "top": 3,
            "rows": 9,
            "stages": False,
            "follow": [],
        }
    ]


EVENT = asdict(Event(number=0, turn=0, kind=EventKind.CALLED, text="{}", tool="look", arguments={"a": 1}))
TIMING = asdict(TurnTiming(turn=0, phase="policy", start_s=1.0, end_s=2.0))
REWARD = asdict(Reward(value=0.5, F=1.0, N=0.5, I=0.5))


def delta(**new):
    """What an answer says of an episode."""
    lists = {name: [] for name in ("messages", "events", "timings", "ids", "logprobs", "spans")}
    plain = {"server": "s", "most_turns": 30, "most_tokens": 8192, "stop": "", "error": "", "reward": None}
    return {"row": ROW, **lists, **plain, **new}


async def test_following_merges_deltas(run):
    """Each question says what is here, each answer is appended; task and reward stay when they are not told again."""
    told = [
        delta(
            messages=[{"role": "user", "content": "hi"}],
            ids=[1, 2, 3],
            instruction="Buy.",
            rubric=[["subgoal", "s1", "buys"]],
        ),
        delta(messages=[{"role": "assistant", "content": "yes"}], events=[EVENT], timings=[TIMING], ids=[4, 5]),
        delta(logprobs=[-0.5, -1.0], spans=[{"start": 3, "length": 2, "version": 7}], reward=REWARD, stop="answer"),
        delta(stop="answer"),
    ]

    async def script(question):
        return QUIET | {"episodes": {"g000003.01": told.pop(0)}}

    async with engine(run, script) as questions, looking(run) as source:
        for _ in range(4):
            seen = await source.look(SnapshotQuery(follow="g000003.01"))
    have = [question["follow"][0]["have"] for question in questions]
    names = ("messages", "events", "timings", "ids", "logprobs", "spans")
    assert [tuple(one[name] for name in names) for one in have] == [
        (0, 0, 0, 0, 0, 0),
        (1, 0, 0, 3, 0, 0),
        (2, 1, 1, 5, 0, 0),
        (2, 1, 1, 5, 2, 1),
    ]
    episode = seen.episode
    assert [message["content"] for message in episode.messages] == ["hi", "yes"]
    assert episode.events == (
        Event(number=0, turn=0, kind=EventKind.CALLED, text="{}", tool="look", arguments={"a": 1}),
    )
    assert episode.timings == (TurnTiming(turn=0, phase="policy", start_s=1.0, end_s=2.0),)
    assert (episode.ids, episode.logprobs) == ((1, 2, 3, 4, 5), (-0.5, -1.0))
    assert episode.spans == (Span(start=3, length=2, version=7),)
    assert (episode.instruction, episode.rubric) == ("Buy.", {("subgoal", "s1"): "buys"})
    assert (episode.stop, episode.reward.value, episode.most_turns) == ("answer", 0.5, 30)


async def test_siblings_are_asked_for(run):
    """The followed one first, then its group; an evaluation has none; who is in flight no more stays as it was."""

    async def script(question):
        known = {one["id"]: delta(row=[one["id"], *ROW[1:]]) for one in question["follow"]}
        if len(questions) > 1:
            known["g000003.00"] = None
        return QUIET | {"episodes": known}

    question = SnapshotQuery(follow="g000003.02", siblings=True)
    async with engine(run, script) as questions, looking(run) as source:
        for _ in range(2):
            seen = await source.look(question)
            assert [one.row.id for one in seen.siblings] == [f"g000003.{number:02d}" for number in range(GROUP_SIZE)]
            assert seen.episode == seen.siblings[2]
        assert [one["id"] for one in questions[0]["follow"]][:2] == ["g000003.02", "g000003.00"]
        await source.look(SnapshotQuery(follow="e00000-0007.00", siblings=True))
        assert [one["id"] for one in questions[-1]["follow"]] == ["e00000-0007.00"]


async def test_an_episode_that_only_the_records_have(run):
    """What the engine has forgotten is read from its frame, advantage and all."""

    async def script(question):
        return QUIET | {"episodes": {"g000000.01": None}}

    async with engine(run, script), looking(run) as source:
        seen = await source.look(SnapshotQuery(follow="g000000.01"))
        assert seen.episode.row.id == "g000000.01"
        assert seen.episode.row.phase == "done"
        assert len(seen.episode.ids) == 10
        assert seen.episode.advantage > 0
        assert (await source.look(SnapshotQuery(follow="g999999.01"))).episode is None


async def test_no_engine_yet_then_one(run):
    """Starting until somebody listens; the source finds it by itself."""
    async with looking(run) as source:
        seen = await source.look(SnapshotQuery())
        assert (seen.state, seen.note, seen.rows, seen.step) == ("starting", "", (), 3)
        async with engine(run, quiet):
            assert (await look_until(source, lambda seen: seen.state == "live")).total == 2


async def test_killed_in_the_middle_of_an_answer(run):
    """Half an answer is none: starting, with a note, and a conversation that was open stays; the next engine is asked
    for all of it, because it may play the episode anew."""

    async def half(question):
        answer = QUIET | {"episodes": {"g000003.01": delta(messages=[{"role": "user", "content": "old"}])}}
        return answer if len(questions) == 1 else framed(answer)[:200]

    async def whole(question):
        return QUIET | {"episodes": {"g000003.01": delta(messages=[{"role": "user", "content": "new"}])}}

    question = SnapshotQuery(follow="g000003.01")
    async with looking(run) as source:
        async with engine(run, half) as questions:
            assert (await source.look(question)).episode.messages[0]["content"] == "old"
            seen = await source.look(question)
        assert (seen.state, seen.note) == ("starting", "the engine is gone; it is started again")
        assert (seen.rows, seen.phases) == ((), {})
        assert seen.episode.messages[0]["content"] == "old"
        async with engine(run, whole) as questions:
            seen = await look_until(source, lambda seen: seen.state == "live", question)
            assert [message["content"] for message in seen.episode.messages] == ["new"]
            assert questions[0]["follow"][0]["have"]["messages"] == 0


async def test_a_slow_answer(run, monkeypatch):
    """What was seen last stays, with a note; the late answer is not taken for the next one."""
    monkeypatch.setattr("tui.wire._ANSWER_S", 1.0)
    noted = anyio.Event()

    async def script(question):
        if len(questions) == 2:
            await noted.wait()
            return QUIET | {"clock": 99.0}
        return QUIET | {"rows": [ROW], "clock": float(len(questions))}

    async with engine(run, script) as questions, looking(run) as source:
        assert (await source.look(SnapshotQuery())).clock_s == 1.0
        seen = await source.look(SnapshotQuery())
        assert (seen.state, seen.note, seen.clock_s) == ("live", "the engine answers slowly", 1.0)
        assert len(seen.rows) == 1
        noted.set()
        for clock_s in (3.0, 4.0):
            seen = await source.look(SnapshotQuery())
            assert (seen.note, seen.clock_s) == ("", clock_s)


@pytest.mark.parametrize(
    ("answer", "note"),
    [
        ({"v": 2, "clock": 1}, "the engine speaks protocol 2, this dashboard 1"),
        ({"v": 1, "error": "five clients look"}, "the engine refuses: five clients look"),
        (QUIET | {"rows": [[1, 2]]}, "the engine's answer cannot be read: TypeError"),
        (QUIET | {"episodes": {"g000003.01": {"row": ROW}}}, "the engine's answer cannot be read: KeyError"),
        (QUIET | {"episodes": []}, "the engine's answer cannot be read: AttributeError"),
        (b"\x00\x00\x00\x02{]", "who answers is no engine: it sends no JSON"),
        (b"HTTP/1.1 400 Bad", "who answers is no engine: it announces 1,213,486,160 bytes"),
    ],
)
async def test_answers_that_are_none(run, answer, note):
    """They are told, now and at the next look; nothing is raised, and the files are shown."""

    async def script(question):
        return answer

    async with engine(run, script), looking(run) as source:
        for _ in range(2):
            seen = await source.look(SnapshotQuery(follow="g000003.01"))
            assert seen.state == "live"
            assert note in seen.note
            assert len(seen.engine) == 4


async def test_records_that_are_incomplete_beside_an_answering_engine(run):
    """The notice names the groups; the picture goes on."""
    await aside(cut, run, 0, 100)
    async with engine(run, quiet), looking(run) as source:
        seen = await look_until(source, lambda seen: seen.note)
    assert seen.note.startswith(
        "records are incomplete: trajectories/00000.seg: 6 groups are missing that steps 1 to 3 "
    )
    assert "g000000 to g000005" in seen.note
    assert (seen.state, seen.total) == ("live", 2)


async def test_records_that_are_complete_are_no_matter(run):
    """Once they were compared, which the first look does not wait for, nothing is told."""
    async with engine(run, quiet), looking(run) as source:
        first, second = await source.look(SnapshotQuery()), await source.look(SnapshotQuery())
    assert (first.note, second.note) == ("", "")


async def test_a_filter_that_cannot_be_understood(run):
    """It is refused here, and the engine is not asked."""
    async with engine(run, quiet) as questions, looking(run) as source:
        with pytest.raises(ConfigError, match="there is no field color"):
            await source.look(SnapshotQuery(window=Window(where="color=red")))
        assert questions == []
        seen = await source.look(SnapshotQuery(window=Window(where="turn>1 " * 900)))
        assert "shorten the filter" in seen.note


async def test_a_run_that_ends_while_it_is_looked_at(run):
    """The same source goes on with the records, with the supervisor's last words; and back, if the run goes on."""
    async with looking(run) as source:
        async with engine(run, quiet):
            assert (await source.look(SnapshotQuery())).state == "live"
        await aside(lambda: working(run, "draining", ending={"code": 130, "message": "stopped; all is saved"}))
        question = SnapshotQuery(follow="g000000.01", siblings=True)
        seen = await look_until(source, lambda seen: seen.state != "live" and all_read(seen), question)
        assert (seen.state, seen.total, seen.note) == ("ended", 28, "stopped; all is saved")
        assert seen.episode.reward is not None
        assert len(seen.siblings) == GROUP_SIZE
        assert seen.span_s == (0.0, 50.2)
        assert "g000000.01 was not cancelled: " in await source.cancel("g000000.01")
        await aside(working, run)
        async with engine(run, quiet):
            assert (await look_until(source, lambda seen: seen.state == "live")).total == 2


@pytest.mark.parametrize(
    ("phase", "off_s", "with_engine", "state"),
    [
        ("training", -100.0, True, "lost"),
        ("done", -100.0, True, "ended"),
        ("training", 0.0, True, "starting"),
        # A run that goes on has the phase of its last life until its engine starts.
        ("draining", 0.0, False, "starting"),
    ],
)
async def test_states_without_an_engine(run, phase, off_s, with_engine, state):
    """By what runs: pid and start time, and by the phase that was written last."""
    await aside(lambda: working(run, phase, off_s, engine=with_engine))
    async with looking(run) as source:
        assert (await source.look(SnapshotQuery())).state == state
        seen = await look_until(source, all_read)
    assert seen.state == state
    assert seen.total == (0 if state == "starting" else 28)


async def test_an_engine_that_has_drained(run):
    """It is gone for good, though its supervisor still waits for the learner."""

    def drained():
        working(run, "draining")
        recorded = read_json(run.processes)
        for row in recorded["processes"]:
            row["started"] -= 100 * (row["name"] == "engine")
        write_json(run.processes, recorded)

    await aside(drained)
    async with looking(run) as source:
        assert (await source.look(SnapshotQuery())).state == "ended"


async def test_cancel(run):
    """The engine's sentence; what becomes of it otherwise is a sentence too."""

    async def script(question):
        return {"v": 1, "said": f"{question['cancel']} is being cancelled"} if "cancel" in question else QUIET

    async with engine(run, script), looking(run) as source:
        assert await source.cancel("g000003.01") == "the engine was not found yet"
        await source.look(SnapshotQuery())
        assert await source.cancel("g000003.01") == "g000003.01 is being cancelled"
