"""Follows the learner: what it says, the groups that its steps free, and the swap to the versions that it publishes.

Polls learner/progress.json and adapters/ (<= 100 ms). A trained group frees its place of the group budget only once the
adapter of its step is current.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import anyio

from engine.learnerdir.progress import LearnerProgress, read_progress
from engine.run.swap import AdapterSwap
from engine.rundir.layout import RunDir

_POLL_S = 0.1


@dataclass(slots=True)
class LearnerFollower:
    """What the learner came to, as far as its adapters are served."""

    run: RunDir
    swap: AdapterSwap
    on_change: Callable[[], None] = lambda: None
    """Called when a version became current, or the learner's counts changed."""
    progress: LearnerProgress = field(default_factory=LearnerProgress)
    """What the learner said last."""
    _trained_at: dict[int, int] = field(default_factory=dict)

    @property
    def trained(self) -> int:
        """Groups trained by steps whose adapter is current."""
        current = self.swap.versions.current
        return max((count for version, count in self._trained_at.items() if version <= current), default=0)

    @property
    def dropped(self) -> int:
        """Groups that the learner dropped."""
        return self.progress.counters.dropped_groups

    async def watch(self) -> None:
        """Follow the learner until cancelled."""
        while True:
            await self.step()
            await anyio.sleep(_POLL_S)

    async def step(self) -> None:
        """Look once, and do what is due."""
        published, progress = await anyio.to_thread.run_sync(self._look)
        changed = self._heard(progress)
        changed |= await self.swap.advance(published)
        # Places of the group budget are free now: not before, or groups would be born a version behind, and not only
        # once the old version is unloaded.
        if changed:
            self.on_change()
        await self.swap.retire(published)

    def _look(self) -> tuple[list[int], LearnerProgress]:
        return self.run.versions(), read_progress(self.run)

    def _heard(self, progress: LearnerProgress) -> bool:
        """Take the learner's word; returns whether the part of it changed that others wait for."""
        before, now = self.progress.counters, progress.counters
        self.progress = progress
        self._trained_at[now.version] = now.trained_groups
        changed = (before.step, before.version, before.trained_groups, before.dropped_groups)
        return changed != (now.step, now.version, now.trained_groups, now.dropped_groups)
