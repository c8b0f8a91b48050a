"""Publishing directory -> servers: announce, load everywhere, flip, unload, delete (docs/architecture.md).

Polls adapters/ and learner/progress.json (<= 100 ms). What to do is decided by engine.core.versions; this is the I/O. A
trained group frees its place of the group budget only once the adapter of its step is current on every server that
gets traffic; one that is away is not waited for, and gets it before its traffic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import anyio

from engine.core.versions import Versions
from engine.learnerdir.progress import LearnerProgress, read_progress
from engine.rundir.layout import RunDir, adapter_name, remove_directory

_POLL_S = 0.1
_KEEP_BEHIND = 4
"""Versions never deleted behind the oldest that a step may train on: its probe reads them, and a step takes a while."""


class AdapterServers(Protocol):
    """What swapping needs of the policy servers; engine.policy.servers.Servers, or scripted."""

    async def load(self, name: str, path: Path) -> None:
        """Load on every server; returns when all that get traffic have it. Raises RunError if one cannot."""
        ...

    async def unload(self, name: str) -> None:
        """Unload on every server."""
        ...


@dataclass(slots=True)
class AdapterSwap:
    """Keeps the servers at the newest published version."""

    run: RunDir
    run_id: str
    versions: Versions
    servers: AdapterServers
    on_event: Callable[[dict[str, Any]], None]
    """Gets every flip, for swaps.jsonl; the servers report their own loads and unloads."""
    clock: Callable[[], float]
    keep_every: int
    max_staleness: int
    on_change: Callable[[], None] = lambda: None
    """Called when a version became current, or the learner's counts changed."""
    progress: LearnerProgress = field(default_factory=LearnerProgress)
    _trained_at: dict[int, int] = field(default_factory=dict)

    @property
    def trained(self) -> int:
        """Groups trained by steps whose adapter is current."""
        return max(
            (count for version, count in self._trained_at.items() if version <= self.versions.current), default=0
        )

    async def watch(self) -> None:
        """Follow the learner until cancelled."""
        while True:
            await self.step()
            await anyio.sleep(_POLL_S)

    async def step(self) -> None:
        """Look once, and do what is due."""
        published, progress = await anyio.to_thread.run_sync(self._look)
        if published:
            self.versions.announced = max(self.versions.announced, published[-1])
        counters, changed = progress.counters, _decided(progress) != _decided(self.progress)
        self.progress = progress
        self._trained_at[counters.version] = counters.trained_groups
        if (version := self.versions.next_load()) is not None:
            await self.serve(version)
            changed = True
        # Places of the group budget are free now: not before, or groups would be born a version behind, and not only
        # once the old version is unloaded.
        if changed:
            self.on_change()
        for version in self.versions.unloadable():
            self.versions.forget(version)
            await self.servers.unload(adapter_name(self.run_id, version))
        await anyio.to_thread.run_sync(self._collect_garbage, published)

    async def serve(self, version: int) -> None:
        """Load one version on every server, then make it leasable (and current, if it is the newest)."""
        name = adapter_name(self.run_id, version)
        await self.servers.load(name, self.run.adapter(version))
        before = self.versions.current
        self.versions.flip(version)
        if self.versions.current != before:
            now = self.clock()
            event = {"event": "flip", "adapter": name, "version": version, "start_s": now, "end_s": now, "ok": True}
            self.on_event({**event, "server": "*"})

    def _look(self) -> tuple[list[int], LearnerProgress]:
        return self.run.versions(), read_progress(self.run)

    def _collect_garbage(self, published: list[int]) -> None:
        kept = {*published[-(self.max_staleness + _KEEP_BEHIND) :], *self.versions.loaded, self.run.best}
        for version in published:
            if version not in kept and version % self.keep_every:
                remove_directory(self.run.adapter(version))


def _decided(progress: LearnerProgress) -> tuple[int, ...]:
    """The part of the learner's word that others wait for."""
    counters = progress.counters
    return counters.step, counters.version, counters.trained_groups, counters.dropped_groups
