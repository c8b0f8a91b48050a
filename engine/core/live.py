"""Who is in flight: every episode from its beginning until its group is written, and some that are written already.

Kept for whoever looks at a run while it goes on (engine.attach); counts follow every step, so that nothing is scanned
before somebody asks.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic, TypeVar

from engine.telemetry.stages import Stages
from engine.telemetry.window import BINS, NEWEST_REWARDS, PHASES, Seen, bin_of
from engine.types import EpisodeGroup, Source

_WRITTEN = 512

_Entry = TypeVar("_Entry", bound=Seen)


@dataclass(slots=True)
class LiveEpisodes(Generic[_Entry]):
    """The episodes of one engine process."""

    phases: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PHASES, 0))
    """How many there are in each phase."""
    rewards: list[int] = field(default_factory=lambda: [0] * BINS)
    """Histogram of the newest rewards of training episodes."""
    stages: Stages = field(default_factory=Stages)
    """Where their time goes."""
    _playing: dict[str, _Entry] = field(default_factory=dict)
    _ended: dict[str, _Entry] = field(default_factory=dict)
    _written: deque[_Entry] = field(default_factory=deque)
    """Those that stay only until enough newer ones are written."""
    _recent: deque[int] = field(default_factory=lambda: deque(maxlen=NEWEST_REWARDS))
    """Bins of the newest rewards."""

    def __repr__(self) -> str:
        phases = ", ".join(f"{count} {phase}" for phase, count in self.phases.items() if count)
        return f"<LiveEpisodes {len(self)}: {phases}>"

    def __len__(self) -> int:
        return len(self._playing) + len(self._ended)

    def all(self) -> list[_Entry]:
        """All of them: those in flight, in the order in which they began, then those that have ended."""
        return [*self._playing.values(), *self._ended.values()]

    def oldest(self, most: int) -> list[_Entry]:
        """Of those in flight, those that began first, at most so many."""
        return list(islice(self._playing.values(), most))

    @property
    def playing(self) -> int:
        """How many are in flight."""
        return len(self._playing)

    def get(self, episode_id: str) -> _Entry | None:
        """One of them, or None."""
        return self._playing.get(episode_id, self._ended.get(episode_id))

    def enter(self, episode: _Entry) -> None:
        """It begins. An evaluation that was cancelled is played again under the same ids: the new one counts."""
        if (old := self.get(episode.id)) is not None:
            self.leave(old)
        self._playing[episode.id] = episode
        self.phases[episode.phase] += 1

    def moved(self, episode: _Entry, after: str) -> None:
        """An episode is about to go from its phase to another."""
        if self.get(episode.id) is episode:
            self.phases[episode.phase] -= 1
            self.phases[after] += 1
            if after == "done":
                self._ended[episode.id] = self._playing.pop(episode.id)

    def leave(self, episode: _Entry) -> None:
        """Forget it, unless its place is taken already."""
        for known in (self._playing, self._ended):
            if known.get(episode.id) is episode:
                del known[episode.id]
                self.phases[episode.phase] -= 1

    def written(self, group: EpisodeGroup) -> None:
        """A group is in the stream: its episodes stay until 512 newer ones are too."""
        for episode in group.episodes:
            if (entry := self.get(episode.id)) is not None:
                self._let_go(entry)
            if group.source is Source.POLICY and episode.reward is not None:
                self._count(episode.reward.value)

    def settle(self) -> None:
        """Nothing is played any more: what has ended without its group will not be written."""
        kept = set(map(id, self._written))
        for entry in list(self._ended.values()):
            if id(entry) not in kept:
                self._let_go(entry)

    def _let_go(self, entry: _Entry) -> None:
        self._written.append(entry)
        if len(self._written) > _WRITTEN:
            self.leave(self._written.popleft())

    def _count(self, value: float) -> None:
        if len(self._recent) == NEWEST_REWARDS:
            self.rewards[self._recent[0]] -= 1
        place = bin_of(value)
        self._recent.append(place)
        self.rewards[place] += 1
