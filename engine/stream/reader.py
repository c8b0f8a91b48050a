"""Reading the stream: whole directories, one group, or following a live writer.

A reader needs nothing from the writer but its files. A torn tail in the last segment may still grow, so a follower
waits there; once a later segment (or closed.json) exists it is torn for good, and the follower goes on.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from engine.stream.closed import read_closed
from engine.stream.frame import Header, StreamError, decode_payload, header_payload
from engine.stream.segment import Cursor, RawFrame, Segment, SegmentHeader, segment_numbers
from engine.types import EpisodeGroup

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.001, 0.05


def iter_groups(directory: Path, damage: list[StreamError] | None = None) -> Iterator[EpisodeGroup]:
    """Every whole group on disk now, in arrival order.

    Raises StreamError at a damaged frame; where there is a list for `damage`, that is added to it and passed over."""
    for segment, raw in _frames(directory, damage):
        yield _decoded(segment, raw)


def iter_headers(directory: Path, damage: list[StreamError] | None = None) -> Iterator[Header]:
    """The same, without arrays (`tokens` is None): what lists and tables need."""
    for segment, raw in _frames(directory, damage):
        yield _header(segment, raw)


def read_group_ids(directory: Path) -> list[str]:
    """Ids of all groups, in arrival order; closed segments answer from their footer.

    Raises StreamError at a damaged frame."""
    ids: list[str] = []
    for segment in _segments(directory):
        index = segment.index()
        if index is None:
            ids += [_header(segment, raw).group.id for raw in segment.groups()]
        else:
            ids += [row.group_id for row in index]
    return ids


def read_group(directory: Path, group_id: str) -> EpisodeGroup | None:
    """The last written group of that id, or None.

    Raises StreamError at a damaged frame."""
    found: EpisodeGroup | None = None
    for segment in _segments(directory):
        index = segment.index()
        if index is None:
            frames = [raw for raw in segment.groups() if _header(segment, raw).group.id == group_id]
        else:
            frames = [raw for row in index if row.group_id == group_id and (raw := segment.group(row.offset))]
        found = _decoded(segment, frames[-1]) if frames else found
    return found


def written_positions(directory: Path) -> set[int]:
    """Sampler positions that the stream has (invariant *emit-once*: a resume admits exactly the others).

    Nothing is decompressed. Raises StreamError at a damaged frame."""
    positions: set[int] = set()
    for segment in _segments(directory):
        positions.update(segment.positions())
    return positions


def _segments(directory: Path) -> Iterator[Segment]:
    for number in segment_numbers(directory):
        with Segment(directory, number) as segment:
            yield segment


def _frames(directory: Path, damage: list[StreamError] | None) -> Iterator[tuple[Segment, RawFrame]]:
    for segment in _segments(directory):
        for raw in segment.groups(damage):
            yield segment, raw


def _decoded(segment: Segment, raw: RawFrame) -> EpisodeGroup:
    try:
        return decode_payload(raw.payload)
    except StreamError as error:
        raise segment.error(raw.offset, error.reason) from error


def _header(segment: Segment, raw: RawFrame) -> Header:
    try:
        return header_payload(raw.payload)
    except StreamError as error:
        raise segment.error(raw.offset, error.reason) from error


class StreamReader:
    """Follows a stream in strict arrival order, from a cursor; the directory may be empty or missing yet.

    Example::

        with StreamReader(run.trajectories, cursor=checkpoint.cursor) as reader:
            while not reader.closed:
                if (found := reader.next(timeout=1.0)) is not None:
                    group, cursor = found
    """

    def __init__(self, directory: Path, cursor: Cursor = (0, 0)) -> None:
        self.directory = directory
        self.cursor = cursor
        """End of the last group returned."""
        self.header: SegmentHeader | None = None
        """Header of the segments read so far; None before the first."""
        self.closed = False
        """Whether the writer closed the stream and everything was returned."""
        self._segment: Segment | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Release the open segment; idempotent."""
        if self._segment is not None:
            self._segment.close()
            self._segment = None

    def next(self, timeout: float) -> tuple[EpisodeGroup, Cursor] | None:
        """The next group and the cursor after it; None after `timeout` seconds, or once the stream is closed.

        Polls with pauses up to 50 ms. Raises StreamError for a damaged frame, a segment that is gone, or one of
        another run or tokenizer than those before it."""
        deadline = time.monotonic() + timeout
        pause_s = _FIRST_PAUSE_S
        while (raw := self._advance()) is None and not self.closed:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return None
            time.sleep(min(pause_s, left_s))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        if raw is None or self._segment is None:
            return None
        group = _decoded(self._segment, raw)
        self.cursor = (self._segment.number, raw.end)
        return group, self.cursor

    def _advance(self) -> RawFrame | None:
        """The frame at the cursor, over the ends of segments; None if it is not there yet."""
        while (raw := self._here()) is None:
            # What follows is looked up before the last look at this segment: a frame written in between is not lost.
            closed = read_closed(self.directory) is not None
            later = [number for number in segment_numbers(self.directory) if number > self.cursor[0]]
            if (raw := self._here()) is not None:
                return raw
            if not later:
                self.closed = closed
                return None
            self.close()
            self.cursor = (later[0], 0)
        return raw

    def _here(self) -> RawFrame | None:
        """The frame at the cursor of the cursor's segment."""
        if self._segment is None and not self._open():
            return None
        assert self._segment is not None
        return self._segment.group(self.cursor[1])

    def _open(self) -> bool:
        """Open the cursor's segment and check its header; false while that is not written."""
        number, offset = self.cursor
        try:
            segment = Segment(self.directory, number)
        except FileNotFoundError:
            if offset == 0:
                return False
            raise StreamError(
                f"segment {number:05d} is gone, but it was read up to byte {offset}; restore it, or start a new run",
                segment=str(self.directory),
            ) from None
        found = segment.header()
        if found is None:
            segment.close()
            return False
        header, start = found
        if self.header is not None and header != self.header:
            segment.close()
            raise segment.error(0, f"begins with {header}, but the segments before it with {self.header}")
        self._segment, self.header = segment, header
        self.cursor = (number, max(offset, start))
        return True
