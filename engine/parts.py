"""From a configuration to the seams of an episode: policy and servers, chat format, world, user, scorer."""

from __future__ import annotations

import importlib.util
import resource
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio

from engine.adapters import AdapterServers
from engine.config import Config, load_object
from engine.errors import ConfigError
from engine.policy.chat_format import ChatFormat
from engine.policy.client import HttpPolicy
from engine.policy.servers import Servers
from engine.reward.rubric import RubricScorer
from engine.rundir import RunDir, read_json
from engine.seams import Policy, Scorer, Seams, User, World
from engine.world.offline import OfflineUser, OfflineWorld
from engine.world.store import open_store

UVLOOP = importlib.util.find_spec("uvloop") is not None
"""Whether the event loop can be uvloop's."""

OnEvent = Callable[[dict[str, Any]], None]
"""Hears what happens to adapters on the servers, for swaps.jsonl."""

Act = Callable[[], Coroutine[Any, Any, None]]

_READY_S = 180.0
_SPARE_DESCRIPTORS = 256
_SPARE_SLOTS = 4
"""Adapters loaded beyond max_staleness: the current, the next, one evaluated, one draining (DESIGN.md section 6)."""


class NoServers:
    """The control plane where there is no server: a scripted policy holds every adapter at once."""

    async def load(self, name: str, path: Path) -> None:
        """Nothing to load."""

    async def unload(self, name: str) -> None:
        """Nothing to unload."""

    async def watch(self) -> None:
        """Nothing to watch."""

    async def queued(self) -> int:
        """Nothing waits."""
        return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A policy and the control plane of what serves it."""

    policy: Policy
    servers: AdapterServers
    adapter_slots: int
    """Adapters that every server can hold."""
    watch: Act
    """Keeps an eye on the servers until cancelled."""
    queued: Callable[[], Coroutine[Any, Any, int]]
    """Requests that wait inside the servers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a run is composed of."""

    config: Config
    seams: Seams
    served: Served
    flush: Act
    """Commits the world's mapping."""


@asynccontextmanager
async def build_parts(
    run: RunDir, config: Config, clock: Callable[[], float], on_event: OnEvent
) -> AsyncIterator[Parts]:
    """Everything that an episode needs, ready to use, and closed at the end.

    Raises ConfigError for a plug-in that cannot be loaded or a model without a usable chat template, RunError for
    servers that do not get ready."""
    raise_descriptor_limit(_connections(config) + _SPARE_DESCRIPTORS)
    chat = await anyio.to_thread.run_sync(ChatFormat.load, Path(config.model.path), config.policy.system)
    user: User = OfflineUser() if config.user.kind == "offline" else _plugin(config.user.kind, "user.kind")
    scorer: Scorer = RubricScorer() if config.scorer.kind == "rubric" else _plugin(config.scorer.kind, "scorer.kind")
    served_by = (
        _scripted(config, chat) if config.policy.launch == "scripted" else _http(run, config, chat, clock, on_event)
    )
    async with _world(run, config) as (world, flush), served_by as served:
        seams = Seams(policy=served.policy, world=world, user=user, scorer=scorer, chat=chat, clock=clock)
        yield Parts(config=config, seams=seams, served=served, flush=flush)


@asynccontextmanager
async def _scripted(config: Config, chat: ChatFormat) -> AsyncIterator[Served]:
    policy: Policy = load_object(config.policy.script, "policy.script")(chat=chat, seed=config.run.seed)
    none, slots = NoServers(), config.schedule.max_staleness + _SPARE_SLOTS
    yield Served(policy=policy, servers=none, adapter_slots=slots, watch=none.watch, queued=none.queued)


@asynccontextmanager
async def _http(
    run: RunDir, config: Config, chat: ChatFormat, clock: Callable[[], float], on_event: OnEvent
) -> AsyncIterator[Served]:
    listed = await anyio.to_thread.run_sync(read_json, run.path / "servers.json") or {"urls": []}
    async with (
        Servers(listed["urls"], run_id=run.run_id, clock=clock, on_event=on_event) as servers,
        HttpPolicy(servers, chat, connections=_connections(config)) as policy,
    ):
        await servers.ready(_READY_S)
        # What an engine that was killed left on a server that outlived it would fill its adapter slots.
        await servers.resync({})

        async def queued() -> int:
            return (await servers.loads()).queued

        slots = min(await servers.slots(), config.schedule.max_staleness + _SPARE_SLOTS)
        yield Served(policy=policy, servers=servers, adapter_slots=slots, watch=servers.watch, queued=queued)


def _connections(config: Config) -> int:
    return config.max_live + config.eval.live_slots


@asynccontextmanager
async def _world(run: RunDir, config: Config) -> AsyncIterator[tuple[World, Act]]:
    if config.world.kind != "offline":

        async def nothing() -> None:
            """A world of one's own keeps its answers itself."""

        yield _plugin(config.world.kind, "world.kind"), nothing
        return
    async with open_store(run.world) as store:
        world = OfflineWorld(store)
        yield world, world.flush


def _plugin(name: str, key: str) -> Any:
    return load_object(name, key)()


def raise_descriptor_limit(needed: int) -> None:
    """Raise the limit of open files to its hard limit.

    Raises ConfigError with the number needed if that is too low."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ConfigError(
            f"this run needs {needed} open files, the hard limit is {hard}: raise it (`ulimit -Hn {needed}` as root), "
            "or lower schedule.groups_per_step, group_size or max_staleness"
        )
