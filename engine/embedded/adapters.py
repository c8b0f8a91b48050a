"""Names of adapters, who uses them, and loading and unloading while requests run. Lives in the event loop.

A name is bound to a load id when a request arrives, so that an unload (or a later load under the same name) never
changes a request in flight. Loads and unloads happen one after the other, as in SGLang: while an unload waits for its
users, the next load waits too.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import anyio
from anyio.to_thread import run_sync

from engine.embedded.decoder import Decoder
from engine.embedded.lora import AdapterError, read_adapter
from engine.embedded.projection import BASE
from engine.embedded.wire import RequestError
from engine.embedded.worker import Worker


@dataclass(slots=True, kw_only=True)
class LoadedAdapter:
    """One load of one adapter; `users` counts its requests in flight."""

    name: str
    path: Path
    load_id: int
    users: int = 0
    idle: anyio.Event = field(default_factory=anyio.Event)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterLimits:
    """How many adapters, how large, and from where over HTTP (None = from nowhere)."""

    max_adapters: int
    max_rank: int
    root: Path | None


class LoadedAdapters:
    """The registry. Every refusal is an AdapterError whose text the client gets."""

    def __init__(self, decoder: Decoder, worker: Worker, limits: AdapterLimits) -> None:
        self._decoder = decoder
        self._worker = worker
        self.limits = limits
        self._by_name: dict[str, LoadedAdapter] = {}
        self._changing = anyio.Lock()
        self._leaving = 0
        self._load_ids = itertools.count(BASE + 1)

    @property
    def paths(self) -> dict[str, str]:
        """Name → path of what is loaded: `loaded_adapters` of every reply."""
        return {name: str(entry.path) for name, entry in self._by_name.items()}

    @property
    def slots_used(self) -> int:
        """Adapters that hold memory: loaded, or unloaded but still in use."""
        return len(self._by_name) + self._leaving

    async def load_below_root(self, name: str, path: str) -> None:
        """Load over HTTP: only from below the adapter root."""
        root = self.limits.root
        if root is None:
            raise AdapterError("this server was started without --adapter-root and loads no adapters over HTTP")
        resolved = await anyio.Path(path).resolve()
        if not resolved.is_relative_to(await anyio.Path(root).resolve()):
            raise AdapterError(f"{path} is not below the adapter root {root}; adapters are loaded from there only")
        await self.load(name, Path(path))

    async def load(self, name: str, path: Path) -> None:
        """Read an adapter in a worker thread and serve it; requests in flight are not disturbed."""
        if not name or ":" in name:
            raise AdapterError(f"{name!r} is not an adapter name; use one without a colon")
        async with self._changing:
            if name in self._by_name:
                raise AdapterError(f"LoRA adapter with name {name} is already loaded; a new version needs a new name")
            if self.slots_used >= self.limits.max_adapters:
                raise AdapterError(f"all {self.limits.max_adapters} adapter slots are in use; unload one (--max-loras)")
            read = partial(read_adapter, path, self._decoder.shape, self._decoder.weights, self.limits.max_rank)
            adapter = await run_sync(read)
            load_id = next(self._load_ids)
            self._by_name[name] = LoadedAdapter(name=name, path=path, load_id=load_id)
            self._worker.submit(lambda scheduler: scheduler.install(load_id, adapter))

    async def unload(self, name: str) -> None:
        """Unregister at once, then wait for the adapter's requests in flight."""
        async with self._changing:
            entry = self._by_name.pop(name, None)
            if entry is None:
                raise AdapterError(f"LoRA adapter with name {name} does not exist; loaded: {sorted(self._by_name)}")
            self._leaving += 1
            if not entry.users:
                self._forget(entry)
            # A client that gives up here leaves nothing behind: the last user's end forgets the adapter.
            await entry.idle.wait()

    def acquire(self, name: str | None) -> LoadedAdapter | None:
        """Bind a request to the adapter now loaded under a name; None = the base model."""
        if name is None:
            return None
        entry = self._by_name.get(name)
        if entry is None:
            loaded = ", ".join(self._by_name) or "none"
            raise RequestError(
                400, f"The following requested LoRA adapters are not loaded: {name}\nLoaded adapters: {loaded}."
            )
        entry.users += 1
        return entry

    def release(self, entry: LoadedAdapter | None) -> None:
        """A request ended."""
        if entry is None:
            return
        entry.users -= 1
        if entry.users == 0 and self._by_name.get(entry.name) is not entry:
            self._forget(entry)

    def _forget(self, entry: LoadedAdapter) -> None:
        """Give back what an unloaded adapter holds; nobody uses it any more."""
        self._leaving -= 1
        self._worker.submit(lambda scheduler: scheduler.remove(entry.load_id))
        entry.idle.set()
