"""Whole groups are read, torn tails are waited for or left, damage is named."""

import threading
import time
from contextlib import closing
from dataclasses import replace

import pytest

from engine.rundir.layout import write_json
from engine.stream.append import SegmentFile
from engine.stream.frame import MAGIC, StreamError, encode, wrap
from engine.stream.reader import (
    StreamReader,
    iter_groups,
    iter_headers,
    read_group,
    read_group_ids,
    written_positions,
)
from engine.stream.segment import CLOSED, Segment, segment_path
from tests.parts.children import python
from tests.parts.stream_groups import HEADER, assert_same, group, without_tokens, write_segment


def positions(directory):
    """Positions of the groups that decode, in order."""
    return [group.position for group in iter_groups(directory)]


def drain(reader):
    """Positions of everything that the reader has without waiting."""
    found = []
    while (item := reader.next(timeout=0)) is not None:
        found.append(item[0].position)
    return found


@pytest.mark.parametrize("finish", [True, False], ids=["closed", "killed"])
def test_directory_reads_the_same_with_and_without_footer(tmp_path, finish):
    """Groups, headers, ids, positions and look-ups agree whether segments were closed cleanly or not."""
    groups = [group(position) for position in (4, 2, 9)]
    write_segment(tmp_path, 0, groups[:2], finish=finish)
    write_segment(tmp_path, 3, groups[2:], finish=finish)
    for read, episode_group in zip(iter_groups(tmp_path), groups, strict=True):
        assert_same(read, episode_group)
    assert [found.group for found in iter_headers(tmp_path)] == [without_tokens(group) for group in groups]
    assert read_group_ids(tmp_path) == ["g000004", "g000002", "g000009"]
    assert written_positions(tmp_path) == {2, 4, 9}
    found = read_group(tmp_path, "g000002")
    assert found is not None
    assert_same(found, groups[1])
    assert read_group(tmp_path, "g000005") is None
    with Segment(tmp_path, 0) as segment:
        assert (segment.index() is not None) == finish


def test_missing_directory_is_an_empty_stream(tmp_path):
    """A reader may start before the writer."""
    nowhere = tmp_path / "trajectories"
    assert positions(nowhere) == []
    assert written_positions(nowhere) == set()
    with StreamReader(nowhere) as reader:
        assert reader.next(timeout=0) is None
        write_segment(nowhere, 0, [group(1)])
        assert drain(reader) == [1]


def test_cursor_resumes_exactly(tmp_path):
    """From every cursor that was handed out, a new reader goes on with the next group, across segments."""
    write_segment(tmp_path, 0, [group(0), group(1)])
    write_segment(tmp_path, 1, [group(2)], finish=False)
    write_segment(tmp_path, 2, [group(3)])
    cursors = [(0, 0)]
    with StreamReader(tmp_path) as reader:
        while (found := reader.next(timeout=0)) is not None:
            cursors.append(found[1])
    assert len(cursors) == 5
    for number, cursor in enumerate(cursors):
        with StreamReader(tmp_path, cursor=cursor) as reader:
            assert drain(reader) == list(range(number, 4))
            assert reader.header == HEADER


def test_torn_at_every_byte_of_the_last_frame(tmp_path):
    """Cut anywhere inside the last frame, the frames before it are read and nothing else; whole again, it is too."""
    whole_end, end = write_segment(tmp_path, 0, [group(0), group(1, episodes=1, n_ids=12)], finish=False)
    path = segment_path(tmp_path, 0)
    content = path.read_bytes()
    for size in range(whole_end, end):
        path.write_bytes(content[:size])
        assert written_positions(tmp_path) == {0}, size
        with StreamReader(tmp_path) as reader:
            assert drain(reader) == [0], size
            if size % 50 == 0:
                path.write_bytes(content)
                assert drain(reader) == [1], size


def test_torn_header_of_a_segment(tmp_path):
    """A writer killed while beginning a segment leaves nothing that stops a reader or the next writer."""
    write_segment(tmp_path, 0, [group(0)])
    write_segment(tmp_path, 1, [], finish=False)
    path = segment_path(tmp_path, 1)
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        assert positions(tmp_path) == [0]
        with StreamReader(tmp_path) as reader:
            assert drain(reader) == [0]
    write_segment(tmp_path, 2, [group(2)])
    with StreamReader(tmp_path) as reader:
        assert drain(reader) == [0, 2]


@pytest.mark.parametrize("finish", [True, False], ids=["closed", "killed"])
def test_torn_tail_is_for_good_once_a_later_segment_exists(tmp_path, finish):
    """A follower waits at a torn tail and goes on when the resumed writer has begun the next segment."""
    whole_end, end = write_segment(tmp_path, 0, [group(0), group(1)], finish=False)
    with segment_path(tmp_path, 0).open("r+b") as file:
        file.truncate((whole_end + end) // 2)
    with StreamReader(tmp_path) as reader:
        assert drain(reader) == [0]
        write_segment(tmp_path, 1, [group(1), group(2)], finish=finish)
        assert drain(reader) == [1, 2]
        assert not reader.closed
        write_json(tmp_path / CLOSED, {"segments": 2, "frames": 3})
        assert drain(reader) == []
        assert reader.closed
    assert positions(tmp_path) == [0, 1, 2]


@pytest.mark.parametrize("where", ["magic", "length", "position", "prefix checksum", "payload", "last byte"])
@pytest.mark.parametrize("finish", [True, False], ids=["closed", "killed"])
def test_flipped_byte_in_the_middle_is_named(tmp_path, where, finish):
    """Damage before whole frames (or before the footer) stops every reader, naming segment, byte and remedy."""
    ends = write_segment(tmp_path, 0, [group(0), group(1), group(2)], finish=finish)
    offsets = {"magic": 0, "length": 5, "position": 13, "prefix checksum": 22, "payload": 90}
    damaged = ends[0] + offsets.get(where, ends[1] - ends[0] - 1)
    path = segment_path(tmp_path, 0)
    content = bytearray(path.read_bytes())
    content[damaged] ^= 0x10
    path.write_bytes(content)
    with StreamReader(tmp_path) as reader:
        assert reader.next(timeout=0) is not None
        with pytest.raises(
            StreamError, match=rf"00000\.seg, byte {ends[0]}: damaged, .*truncate -s {ends[0]} "
        ) as caught:
            reader.next(timeout=0)
    assert caught.value.offset == ends[0]
    with pytest.raises(StreamError):
        list(iter_groups(tmp_path))
    path.write_bytes(content[: ends[0]])
    assert positions(tmp_path) == [0]


def test_damaged_last_frame_is_a_torn_tail_only_without_footer(tmp_path):
    """Nothing whole follows: taken for a torn tail; a footer behind it proves damage."""
    ends = write_segment(tmp_path, 0, [group(0), group(1)])
    path = segment_path(tmp_path, 0)
    content = bytearray(path.read_bytes())
    content[ends[0] + 100] ^= 1
    path.write_bytes(content)
    with pytest.raises(StreamError, match="damaged"):
        positions(tmp_path)
    path.write_bytes(content[: ends[1]])
    assert positions(tmp_path) == [0]


@pytest.mark.parametrize(
    ("magic", "message"), [(MAGIC, "not a group"), (b"SGF2", "unknown frame b'SGF2'; a later synth-engine")]
)
def test_checksummed_nonsense_is_named(tmp_path, magic, message):
    """A frame whose checksums are right but which this version cannot read is refused with segment and byte."""
    [end] = write_segment(tmp_path, 0, [group(0)], finish=False)
    with segment_path(tmp_path, 0).open("ab") as file:
        file.write(wrap(magic, b"nonsense" * 9, 1))
    with pytest.raises(StreamError, match=rf"00000\.seg, byte {end}: {message}"):
        positions(tmp_path)


@pytest.mark.parametrize("content", [b"PAR1" * 40, wrap(b"SGH1", b'{"format": 2}', 0)], ids=["no segment", "format"])
def test_foreign_file_is_refused(tmp_path, content):
    """A file that is no segment, or of a later format, is refused by name, with the remedy where there is one."""
    segment_path(tmp_path, 0).write_bytes(content + encode(group(0)))
    with pytest.raises(StreamError, match=r"00000\.seg, byte 0: (damaged|its format is not 1; read it with)"):
        positions(tmp_path)


def test_frames_appended_between_two_looks_are_no_damage(tmp_path, monkeypatch):
    """A writer that appends two frames just after a look at the end: the first is not torn, both are read."""
    file = SegmentFile(tmp_path, 0, HEADER)
    read, appended = Segment._read, []

    def look(segment, size, offset):
        found = read(segment, size, offset)
        if not found and not appended:
            for position in (1, 2):
                appended.append(position)
                file.append(f"g{position:06d}", position, encode(group(position)))
        return found

    monkeypatch.setattr(Segment, "_read", look)
    with closing(file), StreamReader(tmp_path) as reader:
        assert reader.next(timeout=5)[0].position == 1
        assert drain(reader) == [2]


def test_segments_of_two_runs_are_refused(tmp_path):
    """One directory holds one run's stream: another tokenizer in a later segment is an error, not food."""
    write_segment(tmp_path, 0, [group(0)])
    SegmentFile(tmp_path, 1, replace(HEADER, tokenizer_hash="other")).finish()
    with StreamReader(tmp_path) as reader:
        assert reader.next(timeout=0) is not None
        with pytest.raises(StreamError, match=r"00001\.seg.*other"):
            reader.next(timeout=0)


def test_vanished_segment_is_named(tmp_path):
    """A segment that was read in part and is gone is an error; one that was never begun is skipped."""
    ends = write_segment(tmp_path, 0, [group(0), group(1)])
    write_segment(tmp_path, 2, [group(2)])
    segment_path(tmp_path, 0).unlink()
    with StreamReader(tmp_path, cursor=(0, ends[0])) as reader, pytest.raises(StreamError, match="00000 is gone"):
        reader.next(timeout=0)
    with StreamReader(tmp_path) as reader:
        assert drain(reader) == [2]


def test_timeout_and_wake_up(tmp_path):
    """`next` gives up after its timeout, and returns soon after the frame is written."""
    write_segment(tmp_path, 0, [], finish=False)
    with StreamReader(tmp_path) as reader:
        started = time.monotonic()
        assert reader.next(timeout=0.2) is None
        assert time.monotonic() - started >= 0.2
        timer = threading.Timer(0.3, lambda: write_segment(tmp_path, 1, [group(1)]))
        timer.start()
        try:
            found = reader.next(timeout=10)
        finally:
            timer.join()
        assert found is not None
        assert found[0].position == 1


WRITER = """
import sys, time
from pathlib import Path
from engine.rundir.layout import write_json
from engine.stream.append import SegmentFile
from engine.stream.frame import encode
from tests.parts.stream_groups import HEADER, group

directory = Path(sys.argv[1])
for number in range(4):
    file = SegmentFile(directory, number, HEADER)
    for position in range(number * 25, number * 25 + 25):
        content = encode(group(position))
        file.append(f"g{position:06d}", position, content)
        time.sleep(0.002)
    file.finish()
write_json(directory / "closed.json", {"segments": 4, "frames": 100})
"""


def test_following_a_writer_in_another_process(tmp_path):
    """A reader that starts first gets every group once and in order, over segments, and sees the end."""
    found = []
    with StreamReader(tmp_path) as reader, python("-c", WRITER, tmp_path) as process:
        while not reader.closed:
            item = reader.next(timeout=5)
            if item is not None:
                assert_same(item[0], group(item[0].position))
                found.append(item[0].position)
        assert process.wait() == 0
    assert found == list(range(100))
