"""tui.recorded, tui.conversations, tui.replay: episodes on record, as rows and as conversations, at any moment."""

import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import orjson
import pytest

from engine.rundir.layout import RunDir
from engine.stream.append import SegmentFile
from engine.stream.frame import encode
from engine.telemetry.window import Window, select
from engine.types import Event, EventKind, Source, Span, Tokens, TurnTiming
from tests.parts.incomplete_runs import cut, promise_more
from tests.parts.looking import aside, closed_at_the_end, looked, reads_little
from tests.parts.recorded_runs import GROUP_SIZE, RecordedRun, group, small_pack
from tests.parts.stream_groups import HEADER, write_segment
from tests.parts.stream_groups import group as any_group
from tests.parts.work import calls
from tui.recorded import FramePlace, RecordedEpisode, Records
from tui.replay import RecordedSource
from tui.snapshot import Replay

TIMES = (
    ("queued", 0, 1.0, 2.0),
    ("policy", 0, 2.5, 4.0),
    ("tool", 0, 4.5, 6.0),
    ("policy", 1, 6.0, 7.0),
    ("user", 1, 7.0, 9.0),
    ("policy", 2, 9.0, 10.0),
    ("scoring", 2, 10.0, 11.0),
)
MESSAGES = ("system", "user", "assistant", "tool", "assistant", "user", "assistant")
IDS = 24


def played(one, at_s=0.0):
    """The episode with three turns in ten seconds: a call, a question, an answer."""
    return replace(
        one,
        messages=tuple({"role": role, "content": f"{number}"} for number, role in enumerate(MESSAGES)),
        events=(
            Event(number=0, turn=0, kind=EventKind.CALLED, text="{}", tool="look"),
            Event(number=1, turn=1, kind=EventKind.SAID, text="which?"),
            Event(number=2, turn=2, kind=EventKind.ANSWERED, text="done"),
        ),
        tokens=Tokens(
            ids=np.arange(IDS, dtype=np.uint32),
            logprobs=np.arange(9, dtype=np.float32),
            spans=tuple(Span(start=start, length=length, version=1) for start, length in ((10, 3), (15, 4), (22, 2))),
        ),
        timings=tuple(
            TurnTiming(turn=turn, phase=phase, start_s=at_s + start_s, end_s=at_s + end_s)
            for phase, turn, start_s, end_s in TIMES
        ),
        turns=3,
    )


@pytest.fixture(autouse=True)
def _busy(monkeypatch):
    reads_little(monkeypatch)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A recorded run whose first group plays three turns, all members at once; learner rows and a log beside it.

    Its versions were first loaded at 2, 3 and 4 s of the run."""
    base = tmp_path_factory.mktemp("kept")
    made = RecordedRun.make(base / "runs", small_pack(base / "small.jsonl"))
    first = made.groups[0]
    made.groups[0] = replace(first, episodes=tuple(map(played, first.episodes)))
    made.swaps = [{**row, "start_s": 1.0 + row["version"]} for row in made.swaps if row["version"]]
    run = made.write()
    lines = [{"learner/step_count": step, "learner/loss_mean": 0.1} for step in (1, 2, 3)]
    (run.learner / "metrics.jsonl").write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    # Phases began at 0.5 and 3.0 s of the run's clock: training at noon.
    log = (
        ("2026-01-01T11:59:00Z", "before", {}),
        ("2026-01-01T12:00:00Z", "phase", {"phase": "training"}),
        ("2026-01-01T12:00:01.5Z", "two seconds in", {}),
        ("2026-01-01T12:00:02.5Z", "phase", {"phase": "heldout_after"}),
        ("2026-01-01T13:00:00Z", "long after", {}),
    )
    rows = [
        {"event": event, "process": "engine", "level": "info", "timestamp": when, **more} for when, event, more in log
    ]
    run.log.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return run


@pytest.fixture
def run(kept, tmp_path):
    """A copy of that run."""
    shutil.copytree(kept.path, tmp_path / "recorded")
    return RunDir(tmp_path / "recorded")


def names(seen):
    """Their ids."""
    return [one.id for one in seen]


def test_rows_at_moments(run):
    """Phase, turns and tokens of an episode are those of the moment; before its start it is not there."""
    records = Records(run)
    records.read(60)
    expected = {
        1.5: None,
        2.2: ("queued", 0, 0, 2.0),
        3.0: ("policy", 0, 10, 2.5),
        4.2: ("policy", 0, 10, 2.5),
        5.0: ("tool", 1, 13, 4.5),
        6.5: ("policy", 1, 15, 6.0),
        8.0: ("user", 2, 19, 7.0),
        9.5: ("policy", 2, 22, 9.0),
        10.5: ("scoring", 3, 24, 10.0),
        11.0: ("done", 3, 24, 11.0),
    }
    for moment_s, wanted in expected.items():
        found = {one.id: one for one in records.at(moment_s)}.get("g000000.01")
        assert (found and (found.phase, found.turn, found.tokens, found.phase_s)) == wanted, moment_s
        if found is not None and found.phase != "done":
            assert (found.reward, found.outcome) == (None, "")
    assert found.reward == 0.5
    assert found.outcome == "agent_fail"


def test_order_and_totals(run):
    """Entries are in the order in which they began; phases and rewards count what was so at the moment."""
    records = Records(run)
    records.read(60)
    everything = records.at()
    assert len(everything) == 6 * GROUP_SIZE + 4
    assert [one.start_s for one in everything] == sorted(one.start_s for one in everything)
    assert records.span_s == (1.0, 50.2)
    totals = records.totals(everything)
    assert totals.phases["done"] == len(everything)
    # Evaluations are in the table, and not among the rewards of training.
    assert sum(totals.rewards) == 6 * GROUP_SIZE
    assert totals.rewards[10] == totals.rewards[0] == 3 * GROUP_SIZE
    # At 3.1 s groups 1 and 2 are over, group 3 and the first are at their policy.
    then = records.at(3.1)
    totals = records.totals(then, 3.1)
    assert (totals.phases["policy"], totals.phases["done"]) == (2 * GROUP_SIZE, 2 * GROUP_SIZE)
    assert sum(totals.rewards) == 2 * GROUP_SIZE


def test_two_segments_and_a_growing_one(tmp_path):
    """Every frame is read once; a torn tail waits for its rest, and is passed over once there is a later segment."""
    directory = tmp_path / "trajectories"
    records = Records(RunDir(tmp_path))
    records.read(60)
    assert records.complete
    assert records.at() == []
    write_segment(directory, 1, [any_group(0), any_group(1)])
    write_segment(directory, 2, [any_group(2)], finish=False)
    records.read(60)
    assert len(records) == 9
    torn, whole = directory / "00002.seg", encode(any_group(3))
    before = torn.read_bytes()
    torn.write_bytes(before + whole[:-7])
    records.read(60)
    assert len(records) == 9
    torn.write_bytes(before + whole)
    records.read(60)
    assert len(records) == 12
    torn.write_bytes(before + whole + encode(any_group(4))[:100])
    write_segment(directory, 3, [any_group(5)])
    kept = records.entry("g000000.00")
    records.read(60)
    assert names(records.at()) == [f"g{number:06d}.{index:02d}" for number in (0, 1, 2, 3, 5) for index in range(3)]
    assert records.entry("g000000.00") is kept
    assert records.note == ""


def test_damage_is_told(tmp_path):
    """What lies before and after it is shown, with the reason why the rest is not."""
    directory = tmp_path / "trajectories"
    ends = write_segment(directory, 1, [any_group(number) for number in range(3)])
    write_segment(directory, 2, [any_group(3)])
    content = bytearray((directory / "00001.seg").read_bytes())
    content[ends[0] + 40] ^= 0xFF
    (directory / "00001.seg").write_bytes(content)
    records = Records(RunDir(tmp_path))
    for _ in range(2):
        records.read(60)
        assert {name[:7] for name in names(records.at())} == {"g000000", "g000002", "g000003"}
        assert records.note.startswith("records are damaged: ")
        assert str(directory / "00001.seg") in records.note


def test_reading_is_bounded(tmp_path):
    """A look reads for about as long as it may and goes on in the next, until all is there."""
    write_segment(tmp_path / "trajectories", 1, [any_group(number) for number in range(5)])
    records, looks = Records(RunDir(tmp_path)), 0
    while not records.complete:
        records.read(0.0)
        looks += 1
        assert records.complete or f"{len(records)} episodes so far" in records.note
    assert looks == 6
    assert len(records) == 15


def test_a_group_written_twice_counts_once(tmp_path):
    """The last frame of an id is the one that is shown."""
    again = any_group(0)
    again = replace(again, episodes=tuple(replace(one, turns=7) for one in again.episodes))
    write_segment(tmp_path / "trajectories", 1, [any_group(0), any_group(1), again])
    records = Records(RunDir(tmp_path))
    records.read(60)
    assert [one.turn for one in records.at()] == [7, 7, 7, 2, 2, 2]
    assert records.group(records.entry("g000000.01")).episodes[1].turns == 7


def test_selecting_of_many_costs_a_little_each(run):
    """60 rows of 20,000 episodes at a moment, half of them in flight."""
    made = any_group(0).episodes[0]
    records = Records(run)
    for number in range(20_000):
        episode = played(replace(made, id=f"g{number:06d}.00"), at_s=number / 2_000)
        records._entries[episode.id] = RecordedEpisode.of(episode, episode.id[:7], FramePlace(run.trajectories, 1, 0))
    records.read(0)
    window = Window(where="turn>0", sort="tokens")
    seen = records.at(12.0)
    assert len(select(seen, window, 12.0).rows) == 60
    assert sum(one.phase != "done" for one in seen) > 15_000
    assert calls(lambda: select(records.at(12.0), window, 12.0)) < 15 * len(seen)


async def test_everything_of_an_ended_run(run):
    """Without a moment a source shows all that is recorded, and the conversation of who is followed, with tokens."""
    async with closed_at_the_end(RecordedSource(run)) as source:
        seen = await looked(source, follow="g000000.01", siblings=True, window=Window(where="reward>=0.5", rows=5))
        assert (seen.state, seen.phase, seen.step, seen.total) == ("ended", "done", 3, 3 * GROUP_SIZE + 2)
        assert len(seen.rows) == 5
        assert seen.clock_s == 50.2
        assert [one.row.id for one in seen.siblings] == [f"g000000.{index:02d}" for index in range(GROUP_SIZE)]
        episode = seen.episode
        assert episode == seen.siblings[1]
        assert [message["role"] for message in episode.messages] == list(MESSAGES)
        assert list(episode.ids) == list(range(IDS))
        assert list(episode.logprobs) == list(range(9))
        assert (episode.stop, episode.reward.value, episode.most_turns) == ("answer", 0.5, 8)
        # Advantages are what the learner wrote down.
        rows = (await aside((run.learner / "steps.jsonl").read_bytes)).splitlines()
        written = orjson.loads(rows[0])["groups"][0]["advantages"]
        assert [one.advantage for one in seen.siblings] == written
        assert episode.instruction
        assert set(episode.rubric) == {(item.part, item.id) for item in episode.reward.items}
        assert all(episode.rubric.values())
        assert "nothing to cancel" in await source.cancel("g000000.01")


async def test_a_conversation_at_moments(run):
    """Only what had happened: answers of a turn come together, an event when it was answered, spans with their ids."""
    async with closed_at_the_end(RecordedSource(run, at=1.5)) as source:
        assert isinstance(source, Replay)
        assert (await looked(source, follow="g000000.01")).episode is None
        # messages, events, timings, ids, logprobs, spans
        expected = {
            3.0: (2, 0, 1, 10, 0, 0),
            5.0: (3, 0, 2, 13, 3, 1),
            6.5: (4, 1, 3, 15, 3, 1),
            8.0: (5, 1, 4, 19, 7, 2),
            9.5: (6, 2, 5, 22, 7, 2),
            10.5: (7, 3, 6, 24, 9, 3),
            11.0: (7, 3, 7, 24, 9, 3),
        }
        for moment_s, wanted in expected.items():
            source.seek(moment_s)
            seen = await looked(source, follow="g000000.01", siblings=True)
            one = seen.episode
            assert seen.clock_s == moment_s
            found = (one.messages, one.events, one.timings, one.ids, one.logprobs, one.spans)
            assert tuple(map(len, found)) == wanted, moment_s
            assert len(one.ids) >= one.row.tokens
            assert (one.stop, one.reward is None) == (("answer", False) if moment_s == 11.0 else ("", True))
            assert one.row.phase != "done" or moment_s == 11.0
            assert len(seen.siblings) == GROUP_SIZE


async def test_a_frame_that_is_gone(run):
    """A record that cannot be read any more costs the conversation, and is told."""
    async with closed_at_the_end(RecordedSource(run)) as source:
        await looked(source)
        await aside(shutil.rmtree, run.trajectories)
        seen = await looked(source, follow="g000000.01")
        assert seen.episode is None
        assert "No such file" in seen.note
        assert seen.total == 6 * GROUP_SIZE + 4


async def test_records_that_are_incomplete(run):
    """The notice says what is missing and where; all that is there is shown, at any moment."""
    await aside(cut, run, 0, 100)
    await aside(promise_more, run)
    for source in (RecordedSource(run), RecordedSource(run, at=101.5)):
        await looked(source)
        seen = await looked(source)
        missing = "6 groups are missing that steps 1 to 3 trained or dropped: g000000 to g000005"
        assert seen.note.startswith(f"records are incomplete: trajectories/00000.seg: {missing}")
        assert "1 more: `synth-engine show`" in seen.note
        assert seen.total == 4
        await source.close()


async def test_records_that_cannot_be_compared(run):
    """It is not known then whether they are complete, and that is told; nothing ends."""
    await aside((run.learner / "steps.jsonl").write_bytes, b'{"step": {}}\n')
    source = RecordedSource(run)
    await looked(source)
    seen = await looked(source)
    assert "whether the records are complete is unknown" in seen.note
    assert "line 1 is no step of a learner" in seen.note
    await source.close()


async def test_files_at_a_moment(run):
    """Engine rows, swaps, learner rows, advantages, log and phase are cut at the moment; learner rows have the time at
    which their adapter was first loaded."""
    async with closed_at_the_end(RecordedSource(run, at=101.5)) as source:
        seen = await looked(source)
        # Kept within what is recorded: the last episode ends at 50.2 s.
        assert (seen.clock_s, seen.state) == (50.2, "replay")
        assert (seen.step, seen.phase, len(seen.engine)) == (3, "heldout_after", 4)
        for moment_s, step, phase, rows, swaps, log in (
            (1.0, 0, "training", 2, 0, ["before", "phase"]),
            (2.5, 1, "training", 3, 2, ["before", "phase", "two seconds in"]),
            (3.0, 2, "heldout_after", 4, 4, ["before", "phase", "two seconds in", "phase"]),
        ):
            source.seek(moment_s)
            seen = await looked(source, follow="g000000.01")
            assert (seen.step, seen.phase, len(seen.engine), len(seen.swaps)) == (step, phase, rows, swaps), moment_s
            assert [row["learner/step_count"] for row in seen.learner] == list(range(1, step + 1))
            assert [line.event for line in seen.log] == log
            if seen.episode is not None:
                assert (seen.episode.advantage is not None) == (step > 0)


async def test_the_clock(run, monkeypatch):
    """It advances by real time times speed, goes on from where it was at a change of speed, and ends at the end."""
    now = [100.0]
    monkeypatch.setattr("tui.replay.time", SimpleNamespace(monotonic=lambda: now[0]))
    async with closed_at_the_end(RecordedSource(run, at=2.0, speed=2.0)) as source:
        assert (await looked(source)).clock_s == 2.0
        now[0] += 1.5
        assert (await looked(source)).clock_s == 5.0
        source.speed = 0.0
        now[0] += 10
        assert (await looked(source)).clock_s == 5.0
        source.speed = 10.0
        now[0] += 0.5
        assert (await looked(source)).clock_s == 10.0
        source.seek(-3.0)
        seen = await looked(source)
        assert seen.clock_s == seen.span_s[0] == 1.0
        now[0] += 3600
        seen = await looked(source)
        assert seen.clock_s == seen.span_s[1] == 50.2
        assert seen.total == 6 * GROUP_SIZE + 4


def written_more(run):
    """Appends a copy of the first group, as g000099."""
    records = Records(run)
    records.read(60)
    episode_group = records.group(records.entry("g000000.01"))
    more = group(
        "g000099", 99, Source.POLICY, [replace(one, id=f"g000099{one.id[7:]}") for one in episode_group.episodes]
    )
    with closing(SegmentFile(run.trajectories, 7, HEADER)) as file:
        file.append(more.id, more.position, encode(more))


async def test_what_is_written_meanwhile_is_shown(run):
    """A source over a run that still writes shows the new group in the next look."""
    async with closed_at_the_end(RecordedSource(run)) as source:
        before = (await looked(source)).total
        await aside(written_more, run)
        seen = await looked(source, follow="g000099.02")
        assert seen.total == before + GROUP_SIZE
        assert seen.episode.row.group == "g000099"


async def test_a_pack_without_the_task(run):
    """An episode is shown without its task where the pack cannot be read."""
    await aside(run.pack.write_bytes, b"no zstd")
    async with closed_at_the_end(RecordedSource(run)) as source:
        seen = await looked(source, follow="g000000.01")
        assert (seen.episode.instruction, seen.episode.rubric) == ("", {})
        assert seen.episode.messages


def test_entries_are_small(tmp_path):
    """What is kept of an episode is below 1.5 kB, for eleven phases."""
    import tracemalloc  # noqa: PLC0415 - counts only what comes after its start

    directory = Path(tmp_path / "trajectories")
    groups = [any_group(number) for number in range(60)]
    write_segment(directory, 1, [replace(group, episodes=tuple(map(played, group.episodes))) for group in groups])
    records = Records(RunDir(tmp_path))
    tracemalloc.start()
    records.read(60)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept / len(records) < 1_500
