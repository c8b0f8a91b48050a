"""One segment of the stream: an append-only file of frames.

::

    segment = header group* [footer trailer]
    header  = a frame with magic "SGH1": JSON of SegmentHeader and the format's number; position = number of the segment
    group   = a frame with magic "SGF1" (engine.stream.frame)
    footer  = a frame with magic "SGX1": JSON rows [group id, position, offset]; position = number of groups
    trailer = offset of the footer u64 | "SGXTRAIL"

Footer and trailer are written at a clean close and make the segment seekable. What follows the last whole frame is a
*torn tail*, left by a writer that was killed: it is ignored. A frame that is not whole although whole ones follow is
damage, never a torn tail, and is refused by name.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import orjson

from engine.stream import frame
from engine.stream.frame import StreamError

SEGMENT_FORMAT = 1
CLOSED = "closed.json"
_HEADER, _FOOTER = b"SGH1", b"SGX1"
_TRAILER = struct.Struct("<Q8s")
_TRAILER_MAGIC = b"SGXTRAIL"


Cursor = tuple[int, int]
"""A place between two frames: number of the segment, offset in it; (0, 0) is the start. As JSON, a list of two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentHeader:
    """What every frame of a segment has in common; the same in all segments of a directory."""

    run_id: str
    model_revision: str
    """Revision of the base model."""
    tokenizer_hash: str
    chat_template_hash: str
    vocab_size: int
    pack_hash: str


@dataclass(frozen=True, slots=True)
class RawFrame:
    """A whole group frame, checksum verified, not yet decompressed."""

    position: int
    """Sampler position of the group."""
    offset: int
    end: int
    """Offset of the byte after it."""
    payload: bytes


class IndexRow(NamedTuple):
    """Where a footer says that a group is."""

    group_id: str
    position: int
    offset: int


def segment_path(directory: Path, number: int) -> Path:
    """`00012.seg`."""
    return directory / f"{number:05d}.seg"


def segment_numbers(directory: Path) -> list[int]:
    """The segments of a directory, ascending; none where there is no directory."""
    return sorted(int(path.stem) for path in directory.glob("*.seg") if path.stem.isdigit())


def header_bytes(header: SegmentHeader, number: int) -> bytes:
    """The start of a segment."""
    return frame.wrap(_HEADER, orjson.dumps({"format": SEGMENT_FORMAT, **asdict(header)}), number)


def footer_bytes(rows: Sequence[IndexRow], offset: int) -> bytes:
    """Footer and trailer of a segment whose groups end at `offset`."""
    return frame.wrap(_FOOTER, orjson.dumps([tuple(row) for row in rows]), len(rows)) + _TRAILER.pack(
        offset, _TRAILER_MAGIC
    )


class Segment:
    """A segment opened for reading; reads see what the writer appended meanwhile."""

    def __init__(self, directory: Path, number: int) -> None:
        self.number = number
        self.path = segment_path(directory, number)
        self._file = self.path.open("rb", buffering=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Release the file; idempotent."""
        self._file.close()

    def header(self) -> tuple[SegmentHeader, int] | None:
        """The header and the offset of the first group; None while it is not whole.

        Raises StreamError for a file that is no segment, is another one than its name says, or has another format."""
        found = self._whole(0)
        if found is None:
            return None
        magic, raw = found
        if magic != _HEADER:
            raise self.error(0, "not a segment of a trajectory stream")
        if raw.position != self.number:
            raise self.error(
                0, f"it is segment {raw.position:05d} under another number: segments were renamed, copied or swapped"
            )
        fields = orjson.loads(raw.payload)
        if fields.pop("format", None) != SEGMENT_FORMAT:
            raise self.error(
                0, f"its format is not {SEGMENT_FORMAT}; read it with the synth-engine version that wrote it"
            )
        return SegmentHeader(**fields), raw.end

    def group(self, offset: int) -> RawFrame | None:
        """The group frame at `offset`; None where nothing whole is (yet), or at the footer.

        Raises StreamError if what is there is damaged and whole frames follow."""
        found = self._whole(offset)
        if found is None or found[0] == _FOOTER:
            return None
        if found[0] != frame.MAGIC:
            raise self.error(offset, f"unknown frame {found[0]!r}; a later synth-engine wrote it, read it with that")
        return found[1]

    def groups(self, damage: list[StreamError] | None = None) -> Iterator[RawFrame]:
        """Every whole group frame, in order.

        Raises StreamError at a damaged one; where there is a list for `damage`, that is added to it, and the next whole
        frame follows."""
        offset: int | None = 0
        while offset is not None:
            try:
                raw = self.group(offset) if offset else self._first()
            except StreamError as error:
                if damage is None:
                    raise
                damage.append(error)
                offset = self.after_damage(offset)
                continue
            if raw is None:
                return
            yield raw
            offset = raw.end

    def after_damage(self, offset: int) -> int | None:
        """Offset of the first whole frame after what is damaged at `offset`, if there is one."""
        return self._next_whole(offset + 1, self._size())

    def _first(self) -> RawFrame | None:
        header = self.header()
        return self.group(header[1]) if header else None

    def index(self) -> list[IndexRow] | None:
        """The footer's rows; None for a segment that was not closed cleanly."""
        end = self._size()
        if end < _TRAILER.size:
            return None
        offset, magic = _TRAILER.unpack(self._read(_TRAILER.size, end - _TRAILER.size))
        found = self._whole(offset) if magic == _TRAILER_MAGIC and offset < end else None
        if found is None or found[0] != _FOOTER:
            return None
        return [IndexRow(*row) for row in orjson.loads(found[1].payload)]

    def positions(self) -> list[int]:
        """Positions of the whole groups, in order; nothing is decompressed.

        Raises StreamError at a damaged one."""
        index = self.index()
        return [raw.position for raw in (self.groups() if index is None else index)]

    def error(self, offset: int, reason: str) -> StreamError:
        """A StreamError that names this segment."""
        return StreamError(reason, segment=str(self.path), offset=offset)

    def _whole(self, offset: int) -> tuple[bytes, RawFrame] | None:
        """Magic and content of the frame at `offset`, if it is whole."""
        # A live writer may append between two looks: only what was there before the first one is compared.
        size = self._size()
        raw = self._read(frame.PREFIX_BYTES, offset)
        prefix = frame.parse_prefix(raw)
        if prefix is not None:
            start = offset + frame.PREFIX_BYTES
            payload = self._read(prefix.payload_bytes, start)
            if len(payload) < prefix.payload_bytes:
                return None
            if zlib.crc32(payload) == prefix.crc:
                end = start + prefix.payload_bytes
                return prefix.magic, RawFrame(position=prefix.position, offset=offset, end=end, payload=payload)
        following = self._next_whole(offset + 1, size)
        if following is not None:
            raise self.error(
                offset,
                f"damaged, not torn: whole frames follow at byte {following}. Restore the file from a copy, or stop"
                f" the run and give up what follows with `truncate -s {offset} {self.path}`; --resume plays it again if"
                " no step has used it",
            )
        return None

    def _next_whole(self, start: int, size: int) -> int | None:
        """Offset of the first whole frame at or after `start` within the first `size` bytes."""
        if start >= size:
            return None
        with mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            for magic in (frame.MAGIC, _FOOTER):
                at = content.find(magic, start, size)
                while at >= 0:
                    prefix = frame.parse_prefix(content[at : at + frame.PREFIX_BYTES])
                    first = at + frame.PREFIX_BYTES
                    end = first + prefix.payload_bytes if prefix else size + 1
                    if prefix and end <= size and zlib.crc32(content[first:end]) == prefix.crc:
                        return at
                    at = content.find(magic, at + 1, size)
        return None

    def _size(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def _read(self, size: int, offset: int) -> bytes:
        return os.pread(self._file.fileno(), size, offset)
