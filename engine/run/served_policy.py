"""The policy of a run and the control plane of the servers that sample it: opened, watched, left without adapters."""

from __future__ import annotations

import resource
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio

from engine.chat.chat_format import ChatFormat
from engine.config.environment import api_key
from engine.config.plugins import load_object
from engine.config.tree import Config
from engine.core.seams import Policy
from engine.errors import ConfigError, RunError
from engine.policy.client import HttpPolicy
from engine.policy.servers import Loads, Servers
from engine.run.swap import AdapterServers
from engine.rundir.layout import RunDir, adapter_name, read_json

OnEvent = Callable[[dict[str, Any]], None]
"""Hears what happens to adapters on the servers, for swaps.jsonl."""

STARTED_READY_S = 180.0
_LEAVE_S = 3.0
"""How long a process that ends waits for its adapters to be unloaded; less than the supervisor's patience."""
_SPARE_DESCRIPTORS = 256


class NoServers:
    """The control plane where there is no server: a scripted policy holds every adapter at once."""

    async def load(self, name: str, path: Path) -> None:
        """Nothing to load."""

    async def unload(self, name: str) -> None:
        """Nothing to unload."""

    async def watch(self) -> None:
        """Nothing to watch."""

    async def loads(self) -> Loads:
        """Nothing waits."""
        return Loads(running=0, queued=0, kv_used=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A policy and the control plane of what serves it."""

    policy: Policy
    servers: AdapterServers
    adapter_slots: int
    """Adapters that every server can hold."""
    watch: Callable[[], Coroutine[Any, Any, None]]
    """Keeps an eye on the servers until cancelled."""
    loads: Callable[[], Coroutine[Any, Any, Loads]]
    """What the servers report."""


def open_policy(
    run: RunDir,
    config: Config,
    chat: ChatFormat,
    clock: Callable[[], float],
    on_event: OnEvent,
    ready_s: float = STARTED_READY_S,
) -> AbstractAsyncContextManager[Served]:
    """The policy of a configuration, on the servers that servers.json of `run` names, until the end of the block.

    Raises ConfigError for a policy that cannot be loaded or servers too small for an episode, RunError for servers that
    do not get ready."""
    raise_descriptor_limit(descriptors_needed(config))
    if config.policy.launch == "scripted":
        return _scripted(config, chat)
    return _http(run, config, chat, clock, on_event, ready_s)


@asynccontextmanager
async def watched(served: Served, run_id: str, adapter: Path | None) -> AsyncIterator[str | None]:
    """Keep an eye on the servers, with one adapter loaded, until the end of the block; gives its name there.

    Without an adapter that is the base, which has none. What is loaded here is unloaded when the policy is closed."""
    async with anyio.create_task_group() as tg:
        tg.start_soon(served.watch)
        name = None
        if adapter is not None:
            name = adapter_name(run_id, 0)
            await served.servers.load(name, adapter)
        yield name
        tg.cancel_scope.cancel()


@asynccontextmanager
async def _scripted(config: Config, chat: ChatFormat) -> AsyncIterator[Served]:
    policy: Policy = load_object(config.policy.script, "policy.script")(chat=chat, seed=config.run.seed)
    none, slots = NoServers(), config.most_adapters
    yield Served(policy=policy, servers=none, adapter_slots=slots, watch=none.watch, loads=none.loads)


@asynccontextmanager
async def _http(
    run: RunDir, config: Config, chat: ChatFormat, clock: Callable[[], float], on_event: OnEvent, ready_s: float
) -> AsyncIterator[Served]:
    listed = await anyio.to_thread.run_sync(read_json, run.path / "servers.json") or {"urls": []}
    run_id = await anyio.to_thread.run_sync(lambda: run.run_id)
    secret = api_key(config.policy.api_key_env, "policy.api_key_env")
    async with (
        Servers(listed["urls"], run_id=run_id, clock=clock, on_event=on_event, api_key=secret) as servers,
        HttpPolicy(servers, chat, connections=_connections(config)) as policy,
    ):
        await servers.ready(ready_s)
        # What an engine that was killed left on a server that outlived it would fill its adapter slots.
        await servers.resync({})

        slots = min(await servers.slots(config.limits.tokens), config.most_adapters)
        try:
            yield Served(policy=policy, servers=servers, adapter_slots=slots, watch=servers.watch, loads=servers.loads)
        finally:
            # A server that outlives this process has no use for its adapters; one that is gone has none.
            with anyio.move_on_after(_LEAVE_S, shield=True), suppress(RunError):
                await servers.resync({})


def _connections(config: Config) -> int:
    wanted = config.schedule.live_slots
    live = config.max_live if wanted == "auto" else min(wanted, config.max_live)
    return live + config.eval.live_slots


def descriptors_needed(config: Config) -> int:
    """Open files that the engine has at most: a connection for every live episode and simulator's call, and some."""
    simulators = sum(endpoint.concurrency for endpoint in config.endpoints.values())
    return _connections(config) + simulators + _SPARE_DESCRIPTORS


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
