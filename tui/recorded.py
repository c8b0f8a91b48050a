"""All recorded episodes of a run, as rows: now, or at a moment of the run's clock.

The frames of trajectories/ and eval/ are read once, in the order in which they were written, and only what is new is
read again. Of an episode stays what a row needs: some 0.9 kB, so about 1 MB for 1,000 episodes, which take some 0.2 s
to read; MOST_EPISODES is where reading ends. A conversation is read from its frame when somebody looks at it.
"""

from __future__ import annotations

import math
import time
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from engine.rundir.layout import RunDir
from engine.stream.frame import StreamError, decode_payload
from engine.stream.segment import RawFrame, Segment, segment_numbers
from engine.telemetry.window import BINS, NEWEST_REWARDS, PHASES, Seen, bin_of
from engine.types import Episode, EpisodeGroup
from tui.conversations import ids_until

MOST_EPISODES = 200_000
_CODES = {phase: code for code, phase in enumerate(PHASES)}
_POLICY = _CODES["policy"]


class FramePlace(NamedTuple):
    """Where a frame is."""

    directory: Path
    segment: int
    offset: int


@dataclass(slots=True, eq=False)
class RecordedEpisode:
    """One recorded episode; by itself it is how the episode ended."""

    id: str
    group_id: str
    task_id: str
    turn: int
    tokens: int
    version: int
    reward: float | None
    outcome: str
    start_s: float
    phase_s: float
    """When it was done."""
    place: FramePlace
    starts: array[float]
    """Of every phase, in seconds on the run's clock; one lasts until the next begins."""
    codes: bytes
    """The phases: places in PHASES."""
    counts: array[int]
    """Ids in the ledger when each began."""

    @property
    def phase(self) -> str:
        """`done`: that is when it was recorded."""
        return "done"

    @classmethod
    def of(cls, episode: Episode, group_id: str, place: FramePlace) -> RecordedEpisode:
        """What a row needs of an episode."""
        starts = array("d", (timing.start_s for timing in episode.timings))
        if starts and episode.timings[0].phase == "queued":
            # Before it got its place it was not there.
            starts[0] = episode.timings[0].end_s
        return cls(
            id=episode.id,
            group_id=group_id,
            task_id=episode.task_id,
            turn=episode.turns,
            tokens=0 if episode.tokens is None else len(episode.tokens.ids),
            version=episode.version,
            reward=None if episode.reward is None else episode.reward.value,
            outcome=str(episode.outcome),
            start_s=starts[0] if starts else 0.0,
            phase_s=episode.timings[-1].end_s if starts else 0.0,
            place=place,
            starts=starts,
            codes=bytes(_CODES[timing.phase] for timing in episode.timings),
            counts=array("I", _counts(episode)),
        )

    def at(self, moment_s: float) -> Seen:
        """The episode at a moment after its start."""
        if self.phase_s <= moment_s:
            return self
        now = bisect_right(self.starts, moment_s) - 1
        return Moment(
            id=self.id,
            group_id=self.group_id,
            task_id=self.task_id,
            phase=PHASES[self.codes[now]],
            turn=self.codes[:now].count(_POLICY),
            tokens=self.counts[now],
            version=self.version,
            start_s=self.start_s,
            phase_s=self.starts[now],
        )


@dataclass(slots=True, kw_only=True)
class Moment:
    """An episode before its end."""

    id: str
    group_id: str
    task_id: str
    phase: str
    turn: int
    tokens: int
    version: int
    start_s: float
    phase_s: float
    reward: None = None
    outcome: str = ""


def _counts(episode: Episode) -> Iterator[int]:
    if episode.tokens is None:
        yield from (0 for _ in episode.timings)
        return
    spans, total, said = episode.tokens.spans, len(episode.tokens.ids), 0
    for before, timing in zip((None, *episode.timings), episode.timings, strict=False):
        waiting = before is not None and before.turn == timing.turn and timing.phase != "scoring"
        yield 0 if timing.phase == "queued" else ids_until(spans, said, total, waiting=waiting)
        said += timing.phase == "policy"


@dataclass(slots=True)
class _Follower:
    """The frames of one directory, each once; a torn tail may still grow until there is a later segment."""

    directory: Path
    number: int = 0
    offset: int = 0
    damage: list[str] = field(default_factory=list)
    """What was passed over."""
    broken: str = ""
    """Why it goes no further."""

    @property
    def note(self) -> str:
        """What cannot be read, or empty."""
        more = f" (and {len(self.damage) - 1} more)" if len(self.damage) > 1 else ""
        damaged = f"records are damaged: {self.damage[0]}{more}" if self.damage else ""
        return self.broken or damaged

    def groups(self) -> Iterator[tuple[EpisodeGroup, FramePlace]]:
        """What is new; a damaged frame is passed over, and noted."""
        while not self.broken:
            # Looked up before the last look at this segment: a frame written in between is not lost.
            later = [number for number in segment_numbers(self.directory) if number > self.number]
            try:
                yield from self._here()
            except OSError as error:
                self.broken = f"records cannot be read: {error}"
            if not later:
                return
            self.number, self.offset = later[0], 0

    def _here(self) -> Iterator[tuple[EpisodeGroup, FramePlace]]:
        try:
            segment = Segment(self.directory, self.number)
        except FileNotFoundError:
            return
        with segment:
            while (found := self._next(segment)) is not None:
                group, raw = found
                # Before it is handed out: the caller may stop here.
                self.offset = raw.end
                yield group, FramePlace(self.directory, self.number, raw.offset)

    def _next(self, segment: Segment) -> tuple[EpisodeGroup, RawFrame] | None:
        """The next group that can be read; None where nothing more is, or not yet."""
        while True:
            try:
                if not self.offset:
                    header = segment.header()
                    if header is None:
                        return None
                    self.offset = header[1]
                raw = segment.group(self.offset)
                return None if raw is None else (decode_payload(raw.payload), raw)
            except StreamError as error:
                told = str(error if error.segment else segment.error(self.offset, error.reason))
                if told not in self.damage:
                    self.damage.append(told)
                following = segment.after_damage(self.offset)
                if following is None:
                    return None
                self.offset = following


class Totals(NamedTuple):
    """What tiles show of all episodes."""

    phases: Mapping[str, int]
    rewards: Sequence[int]


@dataclass(slots=True, eq=False)
class Records:
    """The index; everything here reads or computes, so it belongs in a worker thread."""

    run: RunDir
    complete: bool = False
    """Whether all that was on disk at the last look is read."""
    span_s: tuple[float, float] = (0.0, 0.0)
    """First start and last end."""
    _entries: dict[str, RecordedEpisode] = field(default_factory=dict)
    _sorted: list[RecordedEpisode] = field(default_factory=list)
    _starts: list[float] = field(default_factory=list)
    _scored: list[RecordedEpisode] = field(default_factory=list)
    """In the order of their ends."""
    _ends: list[float] = field(default_factory=list)
    _followers: list[_Follower] = field(init=False)
    _last: tuple[FramePlace, EpisodeGroup] | None = None

    def __post_init__(self) -> None:
        self._followers = [_Follower(self.run.trajectories), _Follower(self.run.eval)]

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def note(self) -> str:
        """What is missing, and why."""
        notes = [follower.note for follower in self._followers if follower.note]
        if len(self) >= MOST_EPISODES:
            notes.append(f"only the first {len(self):,} episodes are listed")
        elif not self.complete:
            notes.append(f"reading the records: {len(self):,} episodes so far")
        return "; ".join(notes)

    def read(self, budget_s: float) -> None:
        """Read what is new, for about so long; `complete` says whether that was all."""
        deadline, before = time.monotonic() + budget_s, len(self)
        self.complete = all(self._read(follower, deadline) for follower in self._followers)
        if len(self) != before:
            self._sorted = sorted(self._entries.values(), key=attrgetter("start_s"))
            self._starts = [entry.start_s for entry in self._sorted]
            self.span_s = self._starts[0], max(entry.phase_s for entry in self._sorted)
            # Of training, as the engine counts: an evaluation would drown them.
            train = self.run.trajectories
            scored = (entry for entry in self._sorted if entry.reward is not None and entry.place.directory == train)
            self._scored = sorted(scored, key=attrgetter("phase_s"))
            self._ends = [entry.phase_s for entry in self._scored]

    def _read(self, follower: _Follower, deadline: float) -> bool:
        for group, place in follower.groups():
            # A group that was written twice counts as it was written last.
            self._entries.update((one.id, RecordedEpisode.of(one, group.id, place)) for one in group.episodes)
            if len(self) >= MOST_EPISODES or time.monotonic() > deadline:
                return False
        return True

    def at(self, moment_s: float = math.inf) -> list[Seen]:
        """The episodes that had begun, in the order in which they did, as they were at a moment."""
        begun = islice(self._sorted, bisect_right(self._starts, moment_s))
        return [entry if entry.phase_s <= moment_s else entry.at(moment_s) for entry in begun]

    def totals(self, seen: Sequence[Seen], moment_s: float = math.inf) -> Totals:
        """Counts over what `at` gave, and the histogram of the rewards that were newest then."""
        counted, bins = Counter(map(attrgetter("phase"), seen)), [0] * BINS
        end = bisect_right(self._ends, moment_s)
        for entry in self._scored[max(0, end - NEWEST_REWARDS) : end]:
            assert entry.reward is not None
            bins[bin_of(entry.reward)] += 1
        return Totals({phase: counted[phase] for phase in PHASES}, tuple(bins))

    def entry(self, episode_id: str) -> RecordedEpisode | None:
        """What is known of an episode."""
        return self._entries.get(episode_id)

    def group(self, entry: RecordedEpisode) -> EpisodeGroup:
        """The group of an episode with its tokens; the last one is kept.

        Raises StreamError for a frame that is damaged now, OSError for one that is gone."""
        place = entry.place
        if self._last is None or self._last[0] != place:
            with Segment(place.directory, place.segment) as segment:
                raw = segment.group(place.offset)
                if raw is None:
                    raise segment.error(place.offset, "the frame is gone")
                self._last = place, decode_payload(raw.payload)
        return self._last[1]
