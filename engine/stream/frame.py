"""One finished group as bytes: the unit of the trajectory stream.

Every number is little-endian::

    frame    = prefix payload
    prefix   = "SGF1" | payload bytes u32 | crc32 of the payload u32 | position i64 | crc32 of the 20 bytes before u32
    payload  = one zstd frame (level 3, content size and checksum inside) of the body
    body     = header bytes u64 | header | pad | ids | pad | logprobs | pad | spans      (pad: zeros to the next 64)
    header   = JSON {"written_s", "id_bytes": 2 | 4, "counts": [[ids, logprobs, spans] | null per episode],
                     "task_group": the EpisodeGroup by field name, each episode with "tokens": null}
    ids      = u16 where every id fits, else u32; all episodes, one after the other
    logprobs = f32 of the policy tokens only
    spans    = i32 rows (start, length, version): loss mask and versions, run-length coded

One group is one zstd frame because siblings share their prompt: about half the size of one frame per episode
(docs/learner.md 6). The prefix has its own checksum, so a damaged length is told from a torn tail, and
carries the position, so a resume lists a segment without decompressing it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import orjson
import zstandard
from numpy.typing import NDArray

from engine.errors import RunError
from engine.stream.record import episode_group
from engine.types import EpisodeGroup, Json, Span, Tokens

MAGIC = b"SGF1"
ALIGN = 64
MAX_BODY_BYTES = 1 << 28
"""Largest body that is written or read: far above any group, and a bound on what a damaged file can allocate."""
_PREFIX = struct.Struct("<4sIIqI")
_HEADER_BYTES = struct.Struct("<Q")
PREFIX_BYTES = _PREFIX.size
_MALFORMED = (zstandard.ZstdError, KeyError, TypeError, ValueError, IndexError, OverflowError)


class StreamError(RunError):
    """A frame or segment that cannot be read or written; names the segment and the byte where they are known."""

    def __init__(self, reason: str, *, segment: str = "", offset: int | None = None) -> None:
        self.reason, self.segment, self.offset = reason, segment, offset
        place = segment if offset is None else f"{segment or 'frame'}, byte {offset}"
        super().__init__(f"{place}: {reason}" if place else reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefix:
    """The fixed-size start of a frame, checksum verified."""

    magic: bytes
    payload_bytes: int
    crc: int
    position: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a frame says without its arrays: enough to list groups, rewards and transcripts."""

    written_s: float
    """When the frame was written, in seconds on the run's clock."""
    group: EpisodeGroup
    """The group; every episode has ``tokens`` None here."""
    counts: tuple[tuple[int, int] | None, ...]
    """Per episode the ids and, of them, policy tokens; None where the frame holds none."""


# --- prefix ---------------------------------------------------------------------------------------------------------


def wrap(magic: bytes, payload: bytes, position: int) -> bytes:
    """Put the checksummed prefix before a payload (u32 length, at most MAX_BODY_BYTES)."""
    start = _PREFIX.pack(magic, len(payload), zlib.crc32(payload), position, 0)[:-4]
    return b"".join((start, struct.pack("<I", zlib.crc32(start)), payload))


def parse_prefix(raw: bytes) -> Prefix | None:
    """The prefix at the start of `raw`, or None if the bytes are too few or are no prefix."""
    if len(raw) < PREFIX_BYTES:
        return None
    magic, payload_bytes, crc, position, own_crc = _PREFIX.unpack_from(raw)
    if zlib.crc32(raw[: PREFIX_BYTES - 4]) != own_crc or payload_bytes > MAX_BODY_BYTES:
        return None
    return Prefix(magic=magic, payload_bytes=payload_bytes, crc=crc, position=position)


# --- encode ---------------------------------------------------------------------------------------------------------


def encode(group: EpisodeGroup, written_s: float = 0.0) -> bytes:
    """The frame of a finished group; CPU work of milliseconds, so call it in a worker thread.

    Raises StreamError for a group that is no JSON, whose ledger contradicts itself, or that is over MAX_BODY_BYTES."""
    ledgers = [checked_ledger(episode.id, episode.tokens) for episode in group.episodes if episode.tokens is not None]
    ids = np.concatenate([np.empty(0, np.uint32), *(tokens.ids for tokens in ledgers)])
    narrow = not ids.size or int(ids.max()) <= np.iinfo(np.uint16).max
    logprobs = np.concatenate([np.empty(0, np.float32), *(tokens.logprobs for tokens in ledgers)])
    rows = [(span.start, span.length, span.version) for tokens in ledgers for span in tokens.spans]
    header = {
        "written_s": written_s,
        "id_bytes": 2 if narrow else 4,
        "counts": [_counts(episode.tokens) for episode in group.episodes],
        "task_group": replace(group, episodes=tuple(replace(episode, tokens=None) for episode in group.episodes)),
    }
    try:
        text = orjson.dumps(header, default=_plain)
    except TypeError as error:
        raise StreamError(f"group {group.id} cannot be written as JSON: {error}") from error
    body = _body(text, ids.astype("<u2" if narrow else "<u4"), logprobs.astype("<f4"), np.array(rows, "<i4"))
    if len(body) > MAX_BODY_BYTES:
        raise StreamError(f"group {group.id} has {len(body)} bytes, more than the {MAX_BODY_BYTES} of a frame; lower G")
    return wrap(MAGIC, zstandard.ZstdCompressor(level=3, write_checksum=True).compress(body), group.position)


def checked_ledger(episode_id: str, tokens: Tokens, first: int = 0) -> Tokens:
    """Returns the ledger of an episode, once spans, ids and log-probabilities agree.

    `first` is the earliest place at which a span may start. Raises StreamError that names the episode."""
    end, policy_tokens = first, 0
    for span in tokens.spans:
        if span.start < end or span.length < 1:
            raise StreamError(f"episode {episode_id}: spans overlap, are empty, or start before token {end}")
        end = span.start + span.length
        policy_tokens += span.length
    if (tokens.spans and end > len(tokens.ids)) or policy_tokens != len(tokens.logprobs):
        raise StreamError(
            f"episode {episode_id}: spans cover {policy_tokens} tokens up to {end}, but there are {len(tokens.ids)}"
            f" ids and {len(tokens.logprobs)} log-probabilities"
        )
    return tokens


def _counts(tokens: Tokens | None) -> tuple[int, int, int] | None:
    return None if tokens is None else (len(tokens.ids), len(tokens.logprobs), len(tokens.spans))


def _plain(value: object) -> dict[Any, Any]:
    # Events and messages are typed as Mapping; orjson itself knows only dict.
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is no JSON value")


def _body(text: bytes, *arrays: NDArray[Any]) -> bytes:
    parts, size = [_HEADER_BYTES.pack(len(text)), text], _HEADER_BYTES.size + len(text)
    for array in arrays:
        pad = -size % ALIGN
        parts += (bytes(pad), array.tobytes())
        size += pad + array.nbytes
    return b"".join(parts)


def body_bytes(frame: bytes) -> int:
    """Size of a frame's body before compression."""
    return zstandard.frame_content_size(memoryview(frame)[PREFIX_BYTES:])


# --- decode ---------------------------------------------------------------------------------------------------------


def decode(frame: bytes) -> EpisodeGroup:
    """The group in a frame.

    Raises StreamError for anything that `encode` did not write."""
    return decode_payload(_verified(frame))


def header(frame: bytes) -> Header:
    """The header of a frame; only the start of the payload is decompressed.

    Raises StreamError like `decode`."""
    return header_payload(_verified(frame))


def decode_payload(payload: bytes) -> EpisodeGroup:
    """`decode` for a payload whose checksum the caller has verified.

    The arrays are writable views into one 64-byte aligned buffer, which lives as long as any of them."""
    try:
        size = _body_bytes(payload)
        body = _aligned(size)
        with zstandard.ZstdDecompressor().stream_reader(payload) as reader:
            if reader.readinto(body.data) != size or reader.read(1):
                raise ValueError("the payload does not have the size it declares")
        text, start = _header_at(body)
        return episode_group(text["task_group"], list(_ledgers(text, body, start)))
    except _MALFORMED as error:
        raise StreamError(f"not a group: {type(error).__name__}: {error}") from error


def header_payload(payload: bytes) -> Header:
    """`header` for a payload whose checksum the caller has verified."""
    try:
        size = _body_bytes(payload)
        with zstandard.ZstdDecompressor().stream_reader(payload) as reader:
            (length,) = _HEADER_BYTES.unpack(reader.read(_HEADER_BYTES.size).ljust(_HEADER_BYTES.size, b"\xff"))
            if length > size:
                raise ValueError("the header is longer than the body")
            text = orjson.loads(reader.read(length))
        group = episode_group(text["task_group"], [None] * len(text["counts"]))
        counts = tuple(None if row is None else (int(row[0]), int(row[1])) for row in text["counts"])
        return Header(written_s=float(text["written_s"]), group=group, counts=counts)
    except _MALFORMED as error:
        raise StreamError(f"not a group: {type(error).__name__}: {error}") from error


def _verified(frame: bytes) -> bytes:
    prefix = parse_prefix(frame)
    payload = frame[PREFIX_BYTES:]
    if prefix is None or prefix.magic != MAGIC:
        raise StreamError("not a frame", offset=0)
    if len(payload) != prefix.payload_bytes or zlib.crc32(payload) != prefix.crc:
        raise StreamError("the frame's checksum is wrong", offset=0)
    return payload


def _body_bytes(payload: bytes) -> int:
    size = zstandard.frame_content_size(payload)
    if not _HEADER_BYTES.size <= size <= MAX_BODY_BYTES:
        raise ValueError(f"declares a body of {size} bytes")
    return size


def _aligned(size: int) -> NDArray[np.uint8]:
    raw = np.empty(size + ALIGN, np.uint8)
    start = -raw.ctypes.data % ALIGN
    return raw[start : start + size]


def _header_at(body: NDArray[np.uint8]) -> tuple[dict[str, Json], int]:
    """The header and the offset of the byte after it."""
    (length,) = _HEADER_BYTES.unpack_from(body.data)
    end = _HEADER_BYTES.size + length
    if end > body.size:
        raise ValueError("the header is longer than the body")
    text: dict[str, Json] = orjson.loads(body[_HEADER_BYTES.size : end].data)
    return text, end


def _ledgers(text: dict[str, Json], body: NDArray[np.uint8], start: int) -> Iterator[Tokens | None]:
    """Slice the three arrays of a group into the ledgers of its episodes."""
    counts = text["counts"]
    n_ids, n_logprobs, n_spans = (sum(row[column] for row in counts if row) for column in range(3))
    ids, start = _array(body, start, f"<u{text['id_bytes']}", n_ids)
    logprobs, start = _array(body, start, "<f4", n_logprobs)
    rows, start = _array(body, start, "<i4", 3 * n_spans)
    # The only copy, and only where ids are narrow: a ledger has one dtype whatever the vocabulary.
    ids = ids.astype(np.uint32, copy=False)
    spans = [Span(start=row[0], length=row[1], version=row[2]) for row in rows.reshape(-1, 3).tolist()]
    at_id = at_logprob = at_span = 0
    for row in counts:
        if row is None:
            yield None
            continue
        yield Tokens(
            ids=ids[at_id : at_id + row[0]],
            logprobs=logprobs[at_logprob : at_logprob + row[1]],
            spans=tuple(spans[at_span : at_span + row[2]]),
        )
        at_id, at_logprob, at_span = at_id + row[0], at_logprob + row[1], at_span + row[2]


def _array(body: NDArray[np.uint8], start: int, dtype: str, count: int) -> tuple[NDArray[Any], int]:
    """A view of the array after the padding at `start`, and the offset of the byte after it."""
    start += -start % ALIGN
    end = start + count * np.dtype(dtype).itemsize
    if end > body.size:
        raise ValueError("an array is longer than the body")
    return body[start:end].view(dtype), end
