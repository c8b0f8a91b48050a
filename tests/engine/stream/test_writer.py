"""What is acknowledged is on disk, once; what cannot be written is never acknowledged."""

import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from functools import reduce
from pathlib import Path
from types import SimpleNamespace

import anyio
import numpy as np
import pytest
from anyio import to_thread

from engine.errors import RunError
from engine.rundir.layout import read_json
from engine.stream import frame
from engine.stream.reader import StreamReader, iter_groups, iter_headers, read_group_ids, written_positions
from engine.stream.segment import CLOSED, Segment, segment_numbers, segment_path
from engine.stream.writer import TrajectoryWriter, WriterSettings
from engine.types import Outcome, Reward
from tests.parts.stream_groups import HEADER, SETTINGS, assert_same, group, write_segment


async def write_all(directory: Path, positions, settings: WriterSettings = SETTINGS) -> TrajectoryWriter:
    """Write the groups at `positions`, all at once, and close."""
    writer = TrajectoryWriter(directory, HEADER, settings)
    async with anyio.create_task_group() as tasks:
        await tasks.start(writer.run)
        async with anyio.create_task_group() as senders:
            for position in positions:
                senders.start_soon(writer.write, group(position))
        await writer.close()
    return writer


def test_written_groups_are_read_back(tmp_path):
    """What many tasks wrote at once is on disk whole; the footer, closed.json and the counters agree with it."""
    writer = anyio.run(write_all, tmp_path, range(40))
    found = {group.position: group for group in iter_groups(tmp_path)}
    assert sorted(found) == list(range(40))
    for position, episode_group in found.items():
        assert_same(episode_group, group(position))
    assert read_json(tmp_path / CLOSED) == {"format": 1, "segments": 1, "frames": 40}
    with Segment(tmp_path, 0) as segment:
        index = segment.index()
        assert segment.header()[0] == HEADER
    assert index is not None
    assert [row.group_id for row in index] == read_group_ids(tmp_path)
    statistics = writer.statistics()
    assert (statistics.frames, statistics.segments, statistics.queued) == (40, 1, 0)
    assert 0 < statistics.bytes < segment_path(tmp_path, 0).stat().st_size
    assert statistics.ratio > 1


async def test_acknowledged_means_readable(tmp_path):
    """The group is in the file when `write` returns, stamped; a follower sees no end before close."""

    def followed() -> tuple[list[int], bool]:
        found = []
        with StreamReader(tmp_path) as reader:
            while (item := reader.next(timeout=0)) is not None:
                found.append(item[0].position)
            return found, reader.closed

    writer = TrajectoryWriter(tmp_path, HEADER, SETTINGS, clock=lambda: 12.5)
    async with anyio.create_task_group() as tasks:
        await tasks.start(writer.run)
        for position in range(3):
            await writer.write(group(position))
            assert await to_thread.run_sync(followed) == (list(range(position + 1)), False)
        await writer.close()
    assert await to_thread.run_sync(followed) == ([0, 1, 2], True)
    headers = await to_thread.run_sync(list, iter_headers(tmp_path))
    assert [found.written_s for found in headers] == [12.5] * 3


def bad_ledger(episode):
    """Its ledger has fewer log-probabilities than its spans have tokens."""
    return replace(episode, tokens=replace(episode.tokens, logprobs=episode.tokens.logprobs[1:]))


def recursive(episode):
    """Its final state has itself in it."""
    state = {}
    state["state"] = state
    return replace(episode, final_state=state)


def event(episode, **changes):
    """Its first event is changed."""
    return replace(episode, events=(replace(episode.events[0], **changes), *episode.events[1:]))


def reward(episode, **changes):
    """Its reward is of somebody's own kind."""
    mine = type("Mine", (Reward,), {})
    return replace(episode, reward=mine(**{"value": 1.0, "F": 1.0, "N": 1.0, "I": 1.0, **changes}))


UNWRITABLE = {
    "text": lambda one: replace(one, messages=({"role": "user", "content": "\ud83d"},)),
    "key": lambda one: replace(one, final_state={("a", 1): 2}),
    "set": lambda one: event(one, arguments={"a": {1}}),
    "NumPy": lambda one: replace(one, reward=replace(one.reward, value=np.float64(1))),
    "integer": lambda one: event(one, revealed=(2**70,)),
    "subclass": reward,
    "recursion": recursive,
    "depth": lambda one: replace(one, final_state=reduce(lambda inner, _: [inner], range(300), 1)),
    "ledger": bad_ledger,
    "size": lambda one: replace(one, messages=({"role": "user", "content": "x" * 990_000},)),
}


@pytest.mark.parametrize("kind", UNWRITABLE)
async def test_an_episode_that_cannot_be_written_is_masked(tmp_path, monkeypatch, kind):
    """The net below the seams: its siblings are written as they are, and so is every other group."""
    monkeypatch.setattr(frame, "MAX_BODY_BYTES", 990_000)
    whole = group(1)
    first, second, third = whole.episodes
    writer = TrajectoryWriter(tmp_path, HEADER, SETTINGS)
    async with anyio.create_task_group() as tasks:
        await tasks.start(writer.run)
        written = await writer.write(replace(whole, episodes=(first, UNWRITABLE[kind](second), third)))
        await writer.write(group(2))
        await writer.close()
    read = await to_thread.run_sync(list, iter_groups(tmp_path))
    assert_same(read[0], written)
    assert_same(read[1], group(2))
    masked = written.episodes[1]
    assert_same(written, replace(whole, episodes=(first, masked, third)))
    assert (masked.id, masked.outcome, masked.reward, masked.tokens) == (second.id, Outcome.INFRA_ERROR, None, None)
    assert masked.error.startswith("g000001.01 cannot be recorded: ")


def test_segments_roll_over(tmp_path):
    """A segment that reached its size is finished with a footer and followed by the next; a reader crosses over."""
    anyio.run(write_all, tmp_path, range(20), replace(SETTINGS, segment_bytes=4_000))
    numbers = segment_numbers(tmp_path)
    assert len(numbers) > 3
    for number in numbers:
        with Segment(tmp_path, number) as segment:
            assert segment.index()
    with StreamReader(tmp_path) as reader:
        found = [reader.next(timeout=0)[0].position for _ in range(20)]
        assert reader.next(timeout=0) is None
        assert reader.closed
    assert sorted(found) == list(range(20))
    assert read_json(tmp_path / CLOSED)["segments"] == len(numbers)


def test_resume_begins_a_new_segment_and_removes_closed_json(tmp_path):
    """Earlier segments are never touched, torn or not; closed.json is gone meanwhile and counts all in the end."""
    anyio.run(write_all, tmp_path, range(3))
    write_segment(tmp_path, 1, [group(3), group(4)], finish=False)
    path = segment_path(tmp_path, 1)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 5)
    before = [segment_path(tmp_path, number).read_bytes() for number in (0, 1)]
    assert written_positions(tmp_path) == {0, 1, 2, 3}

    async def resume() -> bool:
        writer = TrajectoryWriter(tmp_path, HEADER, SETTINGS)
        async with anyio.create_task_group() as tasks:
            await tasks.start(writer.run)
            closed = await anyio.Path(tmp_path / CLOSED).exists()
            await writer.write(group(4))
            await writer.close()
        return closed

    assert not anyio.run(resume)
    assert [segment_path(tmp_path, number).read_bytes() for number in (0, 1)] == before
    assert written_positions(tmp_path) == {0, 1, 2, 3, 4}
    assert read_json(tmp_path / CLOSED) == {"format": 1, "segments": 3, "frames": 5}


async def test_back_pressure(tmp_path):
    """Senders beyond the queue wait, and the statistics show them."""
    writer = TrajectoryWriter(tmp_path, HEADER, replace(SETTINGS, queue_groups=2))
    async with anyio.create_task_group() as tasks:
        for position in range(5):
            tasks.start_soon(writer.write, group(position))
        await anyio.wait_all_tasks_blocked()
        assert writer.statistics().queued == 5
        assert writer.statistics().frames == 0
        await tasks.start(writer.run)
        await writer.close()
    assert writer.statistics().frames == 5


async def test_fsync_every_interval_and_at_close(tmp_path, monkeypatch):
    """Segment data is fsynced about once per interval while frames come, and once more at close."""
    synced = []
    real = os.fsync

    def recorded(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().suffix)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", recorded)
    writer = TrajectoryWriter(tmp_path, HEADER, replace(SETTINGS, fsync_s=0.1))
    async with anyio.create_task_group() as tasks:
        began_s = anyio.current_time()
        await tasks.start(writer.run)
        for position in range(10):
            await writer.write(group(position))
            await anyio.sleep(0.05)
        during, intervals = synced.count(".seg"), (anyio.current_time() - began_s) / 0.1
        await anyio.sleep(0.3)
        idle = synced.count(".seg")
        await writer.close()
    # On a busy machine fewer, as there is more between two frames.
    assert 2 <= during <= intervals
    assert idle <= during + 1
    assert synced.count(".seg") == idle + 1


async def test_cancelled_owner_keeps_whole_frames_and_leaves_no_one_waiting(tmp_path):
    """Cancellation ends the writer between two frames, without closed.json, and waiting senders are told."""
    writer = TrajectoryWriter(tmp_path, HEADER, SETTINGS)
    outcomes: Counter[str] = Counter()

    async def send(position: int, acknowledged: anyio.Event) -> None:
        try:
            await writer.write(group(position))
        except RunError:
            outcomes["refused"] += 1
        else:
            outcomes["acknowledged"] += 1
            acknowledged.set()

    async with anyio.create_task_group() as senders, anyio.create_task_group() as tasks:
        await tasks.start(writer.run)
        acknowledged = anyio.Event()
        for position in range(60):
            senders.start_soon(send, position, acknowledged)
        await acknowledged.wait()
        tasks.cancel_scope.cancel()
    assert outcomes.total() == 60
    assert outcomes["refused"]
    written = await to_thread.run_sync(written_positions, tmp_path)
    assert 0 <= len(written) - outcomes["acknowledged"] <= 1
    assert not await anyio.Path(tmp_path / CLOSED).exists()
    with pytest.raises(RunError):
        await writer.write(group(99))


async def test_low_water_mark_stops_before_the_disk_is_full(tmp_path, monkeypatch):
    """Too little free space: a RunError with directory, numbers and remedy; what was acknowledged is there."""
    free = 900_000_000
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    writer = TrajectoryWriter(tmp_path, HEADER, WriterSettings(low_water_bytes=800_000_000))
    async with anyio.create_task_group() as tasks:
        await tasks.start(writer.run)
        await writer.write(group(0))
        free = 700_000_000
        for _ in range(2):
            with pytest.raises(
                RunError, match=rf"{tmp_path}: 700 MB .* 800 MB: free space or lower stream.low_water_mb"
            ):
                await writer.write(group(1))
        with pytest.raises(RunError, match="low-water"):
            await writer.close()
    assert await to_thread.run_sync(written_positions, tmp_path) == {0}


async def refused(directory: Path) -> list[BaseException]:
    """What beginning to write there raises; `close` must raise it too."""
    writer = TrajectoryWriter(directory, HEADER, SETTINGS)
    with pytest.raises(ExceptionGroup) as caught:
        async with anyio.create_task_group() as tasks:
            await tasks.start(writer.run)
    with pytest.raises(RunError) as last_word:
        await writer.close()
    return [*caught.value.exceptions, last_word.value]


def test_unwritable_directory_is_named(tmp_path):
    """A directory that cannot be made stops the run before the first group, with the path in the message."""
    (tmp_path / "trajectories").write_text("a file")
    for error in anyio.run(refused, tmp_path / "trajectories"):
        assert isinstance(error, RunError)
        assert "trajectories" in str(error)


def test_damaged_earlier_segment_stops_a_resume(tmp_path):
    """A resume onto a damaged stream is refused: which positions it has would be a guess."""
    ends = write_segment(tmp_path, 0, [group(0), group(1)], finish=False)
    content = bytearray(segment_path(tmp_path, 0).read_bytes())
    content[ends[0] - 9] ^= 1
    segment_path(tmp_path, 0).write_bytes(content)
    for error in anyio.run(refused, tmp_path):
        assert isinstance(error, RunError)
        assert "damaged" in str(error)
    assert segment_numbers(tmp_path) == [0]


WRITER = """
import resource
import signal
import sys
from pathlib import Path
import anyio
from engine.errors import RunError
from engine.stream.reader import written_positions
from engine.stream.writer import TrajectoryWriter, WriterSettings
from tests.parts.stream_groups import HEADER, group

async def main(directory, count):
    writer = TrajectoryWriter(directory, HEADER, WriterSettings(low_water_bytes=0, segment_bytes=20_000, fsync_s=0.05))
    async with anyio.create_task_group() as tasks:
        await tasks.start(writer.run)
        # In processor time, so that it is as far then on a busy machine; nothing handles the signal.
        signal.setitimer(signal.ITIMER_PROF, float(sys.argv[4]) if "dies" in sys.argv else 0)
        missing = sorted(set(range(count)) - written_positions(directory))
        async def send(share):
            for position in share:
                await writer.write(group(position))
                print(position, flush=True)
        async with anyio.create_task_group() as senders:
            for first in range(4):
                senders.start_soon(send, missing[first::4])
        await writer.close()

if "size" in sys.argv:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]),) * 2)
try:
    anyio.run(main, Path(sys.argv[1]), int(sys.argv[2]))
except* RunError as errors:
    sys.exit(repr(errors))
"""


def test_kills_at_random_points_then_resume(tmp_path):
    """Killed writers, resumed until done: every acknowledged group is there, none twice, none missing in the end."""
    rng = random.Random(7)
    count, acknowledged = 400, []
    for _ in range(4):
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(count), "dies", str(rng.uniform(0.001, 0.05))]
        killed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        assert killed.returncode == -signal.SIGPROF
        acknowledged += [int(line) for line in killed.stdout.splitlines(keepends=True) if line.endswith("\n")]
        assert set(acknowledged) <= written_positions(tmp_path)
    assert len(acknowledged) < count
    done = subprocess.run(
        [sys.executable, "-c", WRITER, str(tmp_path), str(count)], capture_output=True, text=True, check=True
    )
    acknowledged += map(int, done.stdout.split())
    found = [group.position for group in iter_groups(tmp_path)]
    assert sorted(found) == list(range(count))
    assert max(Counter(acknowledged).values()) == 1
    with StreamReader(tmp_path) as reader:
        followed = []
        while (item := reader.next(timeout=0)) is not None:
            followed.append(item[0].position)
        assert reader.closed
    assert followed == found
    assert read_json(tmp_path / CLOSED)["frames"] == count


@pytest.mark.parametrize("limit", [600, 7_001, 12_345])
def test_full_disk_acknowledges_nothing_half_written(tmp_path, limit):
    """At a file size limit the writer cuts the torn frame off, says what to do, and a resume completes the stream."""
    command = [sys.executable, "-c", WRITER, str(tmp_path), "40"]
    refused = subprocess.run([*command, "size", str(limit)], capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "00000.seg" in refused.stderr
    assert "could not be written" in refused.stderr
    assert "then --resume" in refused.stderr
    acknowledged = [int(line) for line in refused.stdout.split()]
    assert sorted(group.position for group in iter_groups(tmp_path)) == sorted(acknowledged)
    with Segment(tmp_path, 0) as segment:
        ends = [raw.end for raw in segment.groups()] or [segment.header()[1]]
    assert segment_path(tmp_path, 0).stat().st_size == ends[-1]
    subprocess.run([*command, "size", "1000000"], check=True, capture_output=True)
    assert sorted(group.position for group in iter_groups(tmp_path)) == list(range(40))


def test_full_file_system(disk):
    """ENOSPC of a real file system: whole frames are kept, the message names the segment, nothing else is lost."""
    small_disk = disk("256k")
    command = [sys.executable, "-c", WRITER, str(small_disk), "2000"]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert str(small_disk) in refused.stderr
    acknowledged = {int(line) for line in refused.stdout.split()}
    assert acknowledged
    assert written_positions(small_disk) == acknowledged
    assert len(list(iter_groups(small_disk))) == len(acknowledged)
