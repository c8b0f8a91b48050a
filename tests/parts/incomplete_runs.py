"""A small recorded run of three segments, and ways in which its records become incomplete."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import anyio
import orjson

from engine.learnerdir.checkpoint import STATE_FILE, CheckpointState
from engine.learnerdir.counters import LearnerCounters
from engine.learnerdir.steps import TrainedStep
from engine.rundir.layout import RunDir, read_json, read_lines, write_json
from engine.stream.append import SegmentFile
from engine.stream.frame import decode_payload, encode
from engine.stream.segment import CLOSED, Segment, SegmentHeader, segment_path
from engine.stream.writer import TrajectoryWriter, WriterSettings
from engine.types import EpisodeGroup
from tests.parts.recorded_runs import GROUPS_PER_STEP, STEPS, RecordedRun

Damaging = Callable[[RunDir], None]


def in_segments(made: RecordedRun) -> RunDir:
    """The run as its engine would have written it in three lives, each of which made the groups of one step."""
    run = made.write()
    with Segment(run.trajectories, 0) as segment:
        header = segment.header()
    assert header is not None
    segment_path(run.trajectories, 0).unlink()
    rows = list(read_lines(run.learner / "steps.jsonl"))
    for number in range(STEPS):
        first = number * GROUPS_PER_STEP
        anyio.run(write_life, run, header[0], made.groups[first : first + GROUPS_PER_STEP])
        rows[number]["cursor"] = [number, ends(run, number)[-1]]
    write_rows(run, rows)
    cursor = (STEPS - 1, ends(run, STEPS - 1)[-1])
    counters = LearnerCounters(step=STEPS, version=STEPS, cursor=cursor, frames_read=len(made.groups))
    state = CheckpointState(counters=counters, trained=TrainedStep.of(rows[-1]))
    write_json(run.checkpoint(STEPS) / STATE_FILE, state.value())
    return run


async def write_life(run: RunDir, header: SegmentHeader, groups: list[EpisodeGroup]) -> None:
    """What one life of the engine writes: a segment of its own."""
    writer = TrajectoryWriter(run.trajectories, header, WriterSettings(low_water_bytes=0))
    async with anyio.create_task_group() as tg:
        await tg.start(writer.run)
        for written in groups:
            await writer.write(written)
        await writer.close()


def ends(run: RunDir, number: int) -> list[int]:
    """Where the groups of a segment end."""
    with Segment(run.trajectories, number) as segment:
        return [raw.end for raw in segment.groups()]


def write_rows(run: RunDir, rows: list[dict[str, Any]]) -> None:
    """steps.jsonl with these rows."""
    content = b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows)
    (run.learner / "steps.jsonl").write_bytes(content)


def content(run: RunDir) -> dict[str, bytes]:
    """Every file of the run but the lock, which is empty."""
    files = (path for path in sorted(run.path.rglob("*")) if path.is_file() and path.name != "lock")
    return {str(path.relative_to(run.path)): path.read_bytes() for path in files}


# --- ways of becoming incomplete ----------------------------------------------------------------------------------


def cut(run: RunDir, number: int, size: int) -> None:
    """A segment loses its tail."""
    with segment_path(run.trajectories, number).open("r+b") as file:
        file.truncate(size)


def flip(run: RunDir, number: int, offset: int) -> None:
    """One byte of a segment changes."""
    path = segment_path(run.trajectories, number)
    changed = bytearray(path.read_bytes())
    changed[offset] ^= 0xFF
    path.write_bytes(changed)


def cut_first(run: RunDir) -> None:
    """An earlier segment lost its second group."""
    cut(run, 0, ends(run, 0)[0] + 100)


def cut_last(run: RunDir) -> None:
    """The last segment lost a group that a step trained on; as after a kill, it has no footer."""
    cut(run, 2, ends(run, 2)[0])
    (run.trajectories / CLOSED).unlink()


def delete_middle(run: RunDir) -> None:
    """A segment is gone."""
    segment_path(run.trajectories, 1).unlink()


def delete_last(run: RunDir) -> None:
    """The last segment is gone, and no later one tells."""
    segment_path(run.trajectories, 2).unlink()


def empty(run: RunDir) -> None:
    """A segment has no byte left."""
    cut(run, 1, 0)


def flip_first_frame(run: RunDir) -> None:
    """A byte within the first group of a closed segment."""
    flip(run, 1, ends(run, 1)[0] - 50)


def flip_unclosed(run: RunDir) -> None:
    """The same in a segment that a killed writer left without a footer."""
    first, last = ends(run, 0)
    cut(run, 0, last)
    flip(run, 0, first - 50)


def flip_header(run: RunDir) -> None:
    """A byte of the segment's own header."""
    flip(run, 1, 30)


def cut_evaluations(run: RunDir) -> None:
    """An evaluation lost its last episode; the segment looks like one of a killed writer."""
    with Segment(run.eval, 0) as segment:
        last = [raw.offset for raw in segment.groups()][-1]
    with segment_path(run.eval, 0).open("r+b") as file:
        file.truncate(last)
    (run.eval / CLOSED).unlink()


def duplicate(run: RunDir) -> None:
    """A segment is there once more, as if it had been written after all others."""
    shutil.copy(segment_path(run.trajectories, 0), segment_path(run.trajectories, 3))


def swap(run: RunDir) -> None:
    """Two segments have each other's name."""
    one, other, aside = (segment_path(run.trajectories, number) for number in (0, 1, 9))
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def promise_more(run: RunDir) -> None:
    """closed.json counts a group that nobody used."""
    closed = read_json(run.trajectories / CLOSED) or {}
    write_json(run.trajectories / CLOSED, {**closed, "frames": closed["frames"] + 1})


def lose_rows(run: RunDir) -> None:
    """steps.jsonl begins after its first two steps; the checkpoint would complete only the last."""
    write_rows(run, list(read_lines(run.learner / "steps.jsonl"))[2:])


def lose_rows_and_groups(run: RunDir) -> None:
    """Nobody names the groups any more; checkpoint and progress.json still count them."""
    write_rows(run, [])
    (run.trajectories / CLOSED).unlink()
    cut(run, 0, ends(run, 0)[0])


def take_of_another_run(run: RunDir) -> None:
    """A segment of another run, whose groups have the same ids."""
    with Segment(run.trajectories, 1) as segment:
        header = segment.header()
        groups = [decode_payload(raw.payload) for raw in segment.groups()]
    assert header is not None
    segment.path.unlink()
    file = SegmentFile(run.trajectories, 1, replace(header[0], run_id="other-00000000"))
    for group in groups:
        file.append(group.id, group.position, encode(group))
    file.finish()
