"""The training side of the loop: the task of a position, the lease of an episode, the writing of a group."""

from __future__ import annotations

import math
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from engine.config.tree import Config
from engine.core.episode import run_episode
from engine.core.scheduler import Admission, LiveSlots, Scheduler
from engine.core.seams import EpisodePlan, Seams
from engine.core.versions import Versions
from engine.errors import RunError
from engine.run.counters import EngineCounters
from engine.rundir.layout import adapter_name
from engine.stream.writer import TrajectoryWriter
from engine.task import Split, Task
from engine.types import Episode, EpisodeGroup, Limits, Sampling, Source

_HOPELESS_GROUPS = 8
"""Groups in a row, and a whole group budget, without a scored episode: something is broken."""
_OUTAGE_S = 300.0
"""How long whoever used to play users, tools or judges may be away before it is: until then waiting may mend it."""
_FIRST_SLOTS = 256
"""Live episodes to begin with when `schedule.live_slots` is auto."""


def task_index(position: int, tasks: int, seed: int) -> int:
    """Which task a sampler position gets: every epoch is a new shuffle of all tasks."""
    epoch, place = divmod(position, tasks)
    return _epoch_order(epoch, tasks, seed)[place]


@lru_cache(maxsize=2)
def _epoch_order(epoch: int, tasks: int, seed: int) -> list[int]:
    order = list(range(tasks))
    random.Random(f"{seed}:{epoch}").shuffle(order)
    return order


@dataclass(slots=True)
class Rollout:
    """Plays groups of training episodes and acknowledges them to the stream."""

    config: Config
    run_id: str
    tasks: Sequence[Task]
    seams: Seams
    versions: Versions
    writer: TrajectoryWriter
    flush: Callable[[], Awaitable[None]]
    """Commits the world's mapping; always before the frame that used it."""
    counters: EngineCounters
    written: set[int]
    """Positions that the stream holds."""
    scheduler: Scheduler = field(init=False)
    _limits: Limits = field(init=False)
    _sampling: Sampling = field(init=False)
    _admitted_s: dict[int, float] = field(default_factory=dict)
    _unscored: int = 0
    """Groups without a scored episode since the last that had one."""
    _scored_s: float = -math.inf
    """When that was."""

    def __post_init__(self) -> None:
        self.tasks = [task for task in self.tasks if task.split is Split.TRAIN]
        self._limits, self._sampling = self.config.limits.value(), self.config.sampling
        wanted, most = self.config.schedule.live_slots, self.config.max_live
        slots = LiveSlots(limit=min(most, _FIRST_SLOTS), most=most)
        if wanted != "auto":
            slots = LiveSlots(limit=wanted, most=wanted)
        self.scheduler = Scheduler(
            admission=Admission(budget=self.config.group_budget, written=self.written),
            slots=slots,
            group_size=self.config.schedule.group_size,
            play=self._play,
            emit=self._emit,
            clock=self.seams.clock,
        )

    def task(self, position: int) -> Task:
        """The task of a sampler position."""
        return self.tasks[task_index(position, len(self.tasks), self.config.run.seed)]

    def stale(self, version: int) -> bool:
        """Whether an episode pinned to `version` must end at its next turn boundary."""
        return version < self.versions.current - self.config.schedule.max_staleness

    async def _play(self, position: int, index: int) -> Episode:
        queued_s = self._admitted_s.setdefault(position, self.seams.clock())
        group_id = f"g{position:06d}"
        version = self.versions.lease()
        plan = EpisodePlan(
            id=f"{group_id}.{index:02d}",
            group_id=group_id,
            task=self.task(position),
            seed=(self.config.run.seed * 1_000_003 + position) * 1_009 + index,
            version=version,
            adapter=adapter_name(self.run_id, version),
            limits=self._limits,
            sampling=self._sampling,
            queued_s=queued_s,
        )
        try:
            return await run_episode(plan, self.seams, self.stale)
        finally:
            self.versions.release(version)

    async def _emit(self, position: int, episodes: list[Episode]) -> None:
        group = EpisodeGroup(
            id=f"g{position:06d}",
            position=position,
            task_id=episodes[0].task_id,
            source=Source.POLICY,
            sampling=self._sampling,
            episodes=tuple(episodes),
        )
        await self.flush()
        group = await self.writer.write(group)
        if self.seams.live is not None:
            self.seams.live.written(group)
        del self._admitted_s[position]
        self.counters.add(group)
        if any(episode.scored for episode in group.episodes):
            self._unscored, self._scored_s = 0, self.seams.clock()
            return
        self._unscored += 1
        newest = group.episodes[-1]
        waiting = self.seams.clock() - self._scored_s < _OUTAGE_S
        if self._unscored >= max(_HOPELESS_GROUPS, self.config.group_budget) and not waiting:
            raise RunError(
                f"not one episode of the last {self._unscored} groups could be scored, so nothing can be learned. The "
                f"newest, {newest.id}: {newest.outcome}: {newest.error}"
            )
