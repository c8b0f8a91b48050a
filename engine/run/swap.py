"""Publishing directory -> servers: announce, load everywhere, flip, unload, delete (docs/architecture.md).

What to do is decided by engine.core.versions; this is the I/O. A version is current once every server that gets traffic
has it; one that is away is not waited for, and gets it before its traffic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import anyio

from engine.core.versions import Versions
from engine.rundir.layout import RunDir, adapter_name, remove_directory

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

    async def advance(self, published: Sequence[int]) -> bool:
        """Serve the newest of the published versions, if one is to be; returns whether it was."""
        if published:
            self.versions.announced = max(self.versions.announced, published[-1])
        version = self.versions.next_load()
        if version is None:
            return False
        await self.serve(version)
        return True

    async def retire(self, published: Sequence[int]) -> None:
        """Unload what nobody leases any more, and delete what no rule keeps."""
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

    def _collect_garbage(self, published: Sequence[int]) -> None:
        kept = {*published[-(self.max_staleness + _KEEP_BEHIND) :], *self.versions.loaded, self.run.best}
        for version in published:
            if version not in kept and version % self.keep_every:
                remove_directory(self.run.adapter(version))
