"""A run as it is recorded: finished, stopped or lost, or played back by its own clock."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import anyio
import anyio.to_thread

from engine.rundir.layout import RunDir
from engine.stream.frame import StreamError
from engine.stream.reader import read_group
from engine.telemetry.window import WindowRow, conditions, row, select
from engine.types import Episode
from tui.conversations import conversation, task_text
from tui.files import RunFiles, run_facts
from tui.recorded import FramePlace, RecordedEpisode, Records
from tui.snapshot import Conversation, RunFacts, RunState, Snapshot, SnapshotQuery

_READ_S = 0.25
"""Spent on new records in one look; what is left is read in the next."""


class RecordedSource:
    """Snapshots from the files alone: of everything (`at` None), or of a moment that moves with `speed`.

    It goes on reading what is written. Metrics, learner rows, swaps and log are cut at the moment, as tui.files says;
    the moment stands still while the records are read for the first time. Making one reads nothing; `look` raises
    ConfigError or RunError for a directory that is no run."""

    def __init__(
        self,
        run: RunDir,
        *,
        at: float | None = None,
        speed: float = 0.0,
        state: RunState = "ended",
        files: RunFiles | None = None,
    ) -> None:
        self.state: RunState = state
        """While everything is shown; a moment is a `replay`."""
        self.run, self.files, self.records = run, files or RunFiles(run), Records(run)
        self._facts: RunFacts | None = None
        self._at_s = 0.0 if at is None and speed else at
        self._speed, self._since = speed, time.monotonic()
        self._lock = anyio.Lock()

    # --- the clock --------------------------------------------------------------------------------------------------

    @property
    def speed(self) -> float:
        """Seconds of the run per second; 0 stands still."""
        return self._speed

    @speed.setter
    def speed(self, value: float) -> None:
        if self._at_s is not None or value:
            self.seek(self.records.span_s[0] if self._at_s is None else self._moment_s())
        self._speed = value

    def seek(self, clock_s: float) -> None:
        """Show this moment of the run's clock, kept within the span."""
        self._at_s, self._since = self._kept(clock_s), time.monotonic()

    def _kept(self, clock_s: float) -> float:
        """Within the span, as soon as that is known."""
        first, last = self.records.span_s
        return min(max(clock_s, first), last) if self.records.complete else clock_s

    def _moment_s(self) -> float:
        assert self._at_s is not None
        passed_s = time.monotonic() - self._since if self.records.complete else 0.0
        return self._kept(self._at_s + passed_s * self._speed)

    # --- the source -------------------------------------------------------------------------------------------------

    async def look(self, question: SnapshotQuery) -> Snapshot:
        """The state at the moment. Raises ConfigError for a filter that cannot be understood."""
        conditions(question.window.where)
        async with self._lock:
            return await anyio.to_thread.run_sync(self._look, question)

    async def cancel(self, episode_id: str) -> str:
        """Nothing is left to cancel."""
        return f"{episode_id} is on record: there is nothing to cancel"

    async def close(self) -> None:
        """Let go of the files."""
        async with self._lock:
            await anyio.to_thread.run_sync(self.files.close)

    def facts(self) -> RunFacts:
        """What never changes, read once."""
        if self._facts is None:
            self._facts = run_facts(self.run)
        return self._facts

    def _look(self, question: SnapshotQuery) -> Snapshot:
        facts, reading = self.facts(), not self.records.complete
        self.files.read()
        self.records.read(_READ_S)
        if reading and self._at_s is not None:
            self.seek(self._at_s)
        if self._at_s is None:
            told = self.files.now()
            clock_s, moment_s = max(told.clock_s, self.records.span_s[1]), math.inf
        else:
            clock_s = moment_s = self._moment_s()
            told = self.files.at(moment_s)
        seen = self.records.at(moment_s)
        shown, totals = select(seen, question.window, clock_s), self.records.totals(seen, moment_s)
        whole = Snapshot(
            run=facts,
            state=self.state if self._at_s is None else "replay",
            clock_s=clock_s,
            phase=told.phase,
            step=told.step,
            window=question.window,
            rows=shown.rows,
            total=shown.total,
            phases=totals.phases,
            rewards=totals.rewards,
            engine=told.engine,
            learner=told.learner,
            swaps=told.swaps,
            log=told.log,
            note="; ".join(filter(None, (told.note, self.records.note))),
            span_s=self.records.span_s,
        )
        return self._with_episode(whole, question, moment_s) if question.follow else whole

    def _with_episode(self, whole: Snapshot, question: SnapshotQuery, moment_s: float) -> Snapshot:
        entry = self.records.entry(question.follow)
        if entry is None or entry.start_s > moment_s:
            return whole
        try:
            found = self.group_of(entry, whole.clock_s, moment_s)
        except (StreamError, OSError) as error:
            return replace(whole, note="; ".join(filter(None, (whole.note, str(error)))))
        followed = next((one for one in found if one.row.id == question.follow), None)
        return replace(whole, episode=followed, siblings=tuple(found) if question.siblings else ())

    def group_of(self, entry: RecordedEpisode, clock_s: float, moment_s: float = math.inf) -> list[Conversation]:
        """The conversations of an episode's group, as far as they had begun.

        Raises StreamError or OSError for a frame that cannot be read any more."""
        episodes = self.records.group(entry).episodes
        begun = ((episode, self.records.entry(episode.id)) for episode in episodes)
        return [
            self._conversation(episode, row(own.at(moment_s), clock_s), moment_s)
            for episode, own in begun
            if own is not None and own.start_s <= moment_s
        ]

    def recorded_group(self, episode_id: str, clock_s: float) -> list[Conversation]:
        """The same for an episode that the index may not have; empty for one that is not recorded, or is damaged."""
        group = episode_id.rpartition(".")[0]
        place = FramePlace(self.run.eval if group.startswith("e") else self.run.trajectories, 0, 0)
        try:
            episode_group = read_group(place.directory, group)
        except (StreamError, OSError):
            episode_group = None
        episodes = episode_group.episodes if episode_group is not None else ()
        return [
            self._conversation(one, row(RecordedEpisode.of(one, group, place), clock_s), math.inf) for one in episodes
        ]

    def _conversation(self, episode: Episode, shown: WindowRow, moment_s: float) -> Conversation:
        return conversation(
            episode,
            shown,
            facts=self.facts(),
            text=task_text(self.run.pack, episode.task_id),
            advantage=self.files.advantage(episode.id, moment_s),
            moment_s=moment_s,
        )
