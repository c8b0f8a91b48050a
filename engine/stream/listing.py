"""What a directory of segments holds: every group by its id and place, and what is damaged; no group is decoded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.stream.frame import StreamError, header_payload
from engine.stream.segment import Cursor, IndexRow, RawFrame, Segment, segment_numbers

Naming = Callable[[RawFrame], str]
"""Makes the id of a group from its frame, where no footer says it."""


def position_id(raw: RawFrame) -> str:
    """The id of a training group, which is its position; nothing is decompressed."""
    return f"g{raw.position:06d}"


def header_id(raw: RawFrame) -> str:
    """The id of an evaluation's group, from its header: the position alone does not say the version."""
    return header_payload(raw.payload).group.id


@dataclass(frozen=True, slots=True)
class Damage:
    """What cannot be read in a segment."""

    reason: str
    groups: tuple[str, ...] = ()
    """Ids that the footer names, and no whole frame has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The groups of a stream."""

    segments: Mapping[int, Sequence[IndexRow]]
    """Those that every segment has, in order."""
    damage: Sequence[Damage]

    @classmethod
    def read(cls, directory: Path, name: Naming, *, run_id: str, checksums: bool) -> Listing:
        """List a directory; `run_id` is that of its run, or empty where nobody knows.

        A closed segment answers from its footer; with `checksums` every frame of it is read and compared with that."""
        segments: dict[int, Sequence[IndexRow]] = {}
        damage: list[Damage] = []
        for number in segment_numbers(directory):
            with Segment(directory, number) as segment:
                problems = [*_foreign(segment, run_id)]
                segments[number], lost = _listed(segment, name, problems, checksums=checksums)
            damage += map(Damage, dict.fromkeys(map(str, problems)))
            if lost:
                damage.append(Damage(f"{segment.path}: its footer names groups that cannot be read", lost))
        return cls(segments=segments, damage=damage)

    @property
    def ids(self) -> Counter[str]:
        """How often every group is there."""
        return Counter(row.group_id for rows in self.segments.values() for row in rows)

    @property
    def size(self) -> int:
        """How many groups are there, counted as often as they are."""
        return sum(map(len, self.segments.values()))

    @property
    def gone(self) -> list[int]:
        """Numbers of segments that are not there although later ones are."""
        return sorted(set(range(max(self.segments, default=0))) - self.segments.keys())

    def before(self, cursor: Cursor) -> int:
        """How many groups begin before a place."""
        return sum((number, row.offset) < cursor for number, rows in self.segments.items() for row in rows)


def _foreign(segment: Segment, run_id: str) -> Iterator[StreamError]:
    """Why a segment is not one of this run and number."""
    try:
        header = segment.header()
    except StreamError as error:
        yield error
    else:
        if header is not None and run_id and header[0].run_id != run_id:
            yield segment.error(0, f"it is of run {header[0].run_id}, not of {run_id}: restore the run's own")


def _listed(
    segment: Segment, name: Naming, problems: list[StreamError], *, checksums: bool
) -> tuple[Sequence[IndexRow], tuple[str, ...]]:
    """The whole groups of a segment, and ids of those that its footer alone knows; adds to `problems`."""
    try:
        index = segment.index()
    except StreamError as error:
        problems.append(error)
        index = None
    if index is not None and not checksums:
        return index, ()
    known = {row.offset: row for row in index or ()}
    rows = [known.get(raw.offset) or IndexRow(name(raw), raw.position, raw.offset) for raw in segment.groups(problems)]
    for row in rows:
        known.pop(row.offset, None)
    return rows, tuple(row.group_id for row in known.values())
