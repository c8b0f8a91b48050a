"""Who is in flight: every episode from its beginning until its group is written, and some that are written already.

Kept for whoever looks at a run while it goes on (engine.attach); counts follow every step, so that nothing is scanned
before somebody asks.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from engine.telemetry.window import BINS, NEWEST_REWARDS, PHASES, Seen, bin_of
from engine.types import Source, TaskGroup

_WRITTEN = 512

_Entry = TypeVar("_Entry", bound=Seen)


@dataclass(slots=True)
class LiveEpisodes(Generic[_Entry]):
    """The episodes of one engine process, in the order in which they began."""

    phases: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PHASES, 0))
    """How many there are in each phase."""
    rewards: list[int] = field(default_factory=lambda: [0] * BINS)
    """Histogram of the newest rewards of training episodes."""
    _episodes: dict[str, _Entry] = field(default_factory=dict)
    _written: deque[_Entry] = field(default_factory=deque)
    """Those that stay only until enough newer ones are written."""
    _recent: deque[int] = field(default_factory=lambda: deque(maxlen=NEWEST_REWARDS))
    """Bins of the newest rewards."""

    def __repr__(self) -> str:
        phases = ", ".join(f"{count} {phase}" for phase, count in self.phases.items() if count)
        return f"<LiveEpisodes {len(self._episodes)}: {phases}>"

    def all(self) -> list[_Entry]:
        """All of them."""
        return list(self._episodes.values())

    def get(self, episode_id: str) -> _Entry | None:
        """One of them, or None."""
        return self._episodes.get(episode_id)

    def enter(self, episode: _Entry) -> None:
        """It begins. An evaluation that was cancelled is played again under the same ids: the new one counts."""
        if (old := self._episodes.get(episode.id)) is not None:
            self.leave(old)
        self._episodes[episode.id] = episode
        self.phases[episode.phase] += 1

    def moved(self, before: str, after: str) -> None:
        """An episode went from one phase to another."""
        self.phases[before] -= 1
        self.phases[after] += 1

    def leave(self, episode: _Entry) -> None:
        """Forget it, unless its place is taken already."""
        if self._episodes.get(episode.id) is episode:
            del self._episodes[episode.id]
            self.phases[episode.phase] -= 1

    def written(self, tg: TaskGroup) -> None:
        """A group is in the stream: its episodes stay until 512 newer ones are too."""
        for episode in tg.episodes:
            if (entry := self._episodes.get(episode.id)) is not None:
                self._let_go(entry)
            if tg.source is Source.POLICY and episode.reward is not None:
                self._count(episode.reward.value)

    def settle(self) -> None:
        """Nothing is played any more: what has ended without its group will not be written."""
        kept = set(map(id, self._written))
        for entry in self.all():
            if entry.phase == "done" and id(entry) not in kept:
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
