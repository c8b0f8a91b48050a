"""The policy servers of a run: which are healthy, which adapters each holds, when their requests are moved. I/O only.

Which versions to hold is engine.core.versions' decision, where a group goes engine.policy.routing's::

    healthy ──a request is refused, or fails for want of an adapter──▶ down: no new requests
       ▲    ──a question that needs no generation gets no answer──▶ down, and its requests in flight are moved
       └─ it answers, what nobody wants is aborted and unloaded, what it lacks is loaded

So a healthy server holds every adapter that may be asked for. A load or unload waits for the healthy servers only; one
that is away is brought up to date before its traffic. The protocol is SGLang's (docs/sglang.md): a name
is never reused, a load of a loaded name is refused, an unload waits for its users.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import anyio
import anyio.lowlevel
import orjson
import structlog

from engine.errors import RunError
from engine.policy.capacity import adapter_slots, refuse_small
from engine.policy.control import SILENT_S, Control, ControlError, GoneError, fatal
from engine.policy.routing import Routing, Server
from engine.rundir.layout import adapter_version

_log = structlog.get_logger(__name__)
_PROBE_S = 0.5
_KV_FULL = 0.9
_AT_ONCE = 256
"""Requests cancelled before the loop gets a turn (invariant no-block): 2,000 took 15 ms."""
_LOAD_S = 120.0
"""How long a load may take on one server, its restart included; an unload waits for its users as long."""

ServerEvent = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loads:
    """What all servers report together."""

    running: int
    queued: int
    kv_used: float
    """Share of the KV cache in use, of the fullest server."""
    down: int = 0
    """Servers that get no traffic."""
    complete: bool = True
    """Whether every server answered."""

    @property
    def room(self) -> bool:
        """Whether more episodes would be welcome."""
        return self.complete and not self.queued and self.kv_used < _KV_FULL


class Servers:
    """All policy servers of a run.

    `run_id` is the prefix of this run's adapter names; `on_event` gets one object per load, unload, attempt of a turn
    that failed, and time without traffic (down, restart), with start_s and end_s on `clock`. With an `api_key`, every
    request carries it in `headers`; it is never logged."""

    def __init__(
        self,
        urls: Sequence[str],
        *,
        run_id: str,
        clock: Callable[[], float],
        on_event: Callable[[ServerEvent], None],
        api_key: str | None = None,
    ) -> None:
        if not urls:
            raise RunError("no policy server: name at least one in policy.urls")
        self.all = [Server(url=url.rstrip("/")) for url in urls]
        self.clock, self.on_event = clock, on_event
        self.route = Routing(self.all).route
        self._prefix = f"{run_id}-v"
        self._wanted: dict[str, Path] = {}
        self._changed = anyio.Event()
        key = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self.headers: Mapping[str, str] = {"Content-Type": "application/json", **key}
        self._control = Control(self.headers)

    async def __aenter__(self) -> Self:
        await self._control.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        for server in self.all:
            self._was_down(server, ok=False)
        await self._control.__aexit__(kind, error, tb)

    @property
    def _healthy(self) -> list[Server]:
        return [server for server in self.all if server.healthy]

    # --- health and routing ---------------------------------------------------------------------------------------

    async def ready(self, timeout_s: float) -> None:
        """Wait until every server answers; they get traffic from then on.

        Raises RunError that names the one that does not."""
        for server in self.all:
            with anyio.move_on_after(timeout_s):
                await self._answer(server)
                self._set_healthy(server)
                continue
            raise RunError(
                f"policy server {server.url} was not ready in {timeout_s:g} s; look at its log, or check policy.urls"
            )

    async def _answer(self, server: Server) -> None:
        """Ask /ready until it says yes."""
        ready = False
        while not ready:
            with suppress(ControlError):
                ready = await self._control.ready(server)
            await anyio.sleep(0 if ready else _PROBE_S * random.uniform(0.2, 0.5))

    async def place(self, group_id: str) -> Server:
        """The server for a request of this group, waiting for a healthy one; the caller has a deadline."""
        while (server := self.route(group_id)) is None:
            await self._changed.wait()
        return server

    def suspect(self, server: Server) -> None:
        """A request failed there as if it had restarted: no traffic until `watch` has looked."""
        self._set_down(server)
        server.restarted = True
        server.doubt.set()

    async def abort(self, server: Server, rid: str) -> None:
        """Tell a server that nobody waits for a request any more; one that is away hears it when it is back."""
        if not server.healthy:
            server.orphans.add(rid)
            return
        with anyio.CancelScope(shield=True):
            try:
                await self._control.abort(server, rid)
            except ControlError as error:
                _log.info("abort got no answer", server=server.url, rid=rid, error=str(error))

    async def watch(self) -> None:
        """Look after every server until cancelled: move requests away, bring it up to date, let traffic in again."""
        async with anyio.create_task_group() as tg:
            for server in self.all:
                tg.start_soon(self._watch, server)

    async def _watch(self, server: Server) -> None:
        while True:
            with anyio.move_on_after(_PROBE_S * random.uniform(0.8, 1.2)):
                await server.doubt.wait()
            server.doubt = anyio.Event()
            try:
                await self._look(server)
            except ControlError as error:
                if server.healthy:
                    _log.warning("policy server is not well", server=server.url, error=str(error))
                self._set_down(server)
                server.restarted |= isinstance(error, GoneError)
                # With nobody to take them, its requests may as well wait: a server that was only silent answers them.
                if self._healthy:
                    await self._cut(server)
                await anyio.sleep(_PROBE_S / 2)

    async def _cut(self, server: Server) -> None:
        """Wait for none of its answers any more: each request in flight fails now, and may go elsewhere."""
        server.orphans.update(server.flying)
        for number, scope in enumerate([*server.flying.values(), *server.asked], start=1):
            scope.cancel()
            if number % _AT_ONCE == 0:
                await anyio.lowlevel.checkpoint()

    async def _look(self, server: Server) -> None:
        """Ask a server what it holds, and make that what it should hold; then it is healthy."""
        held = list(server.held)
        listed = await self._control.adapters(server)
        if lost := [name for name in held if name not in listed and name in server.held]:
            _log.warning("policy server lost its adapters", server=server.url, adapters=lost)
            self._set_down(server)
            server.restarted = True
            server.held.clear()
        if not server.healthy:
            await self._abort_orphans(server)
        # What an unload that got no answer left behind would fill the server's adapter slots.
        mine = [name for name in listed if name.startswith(self._prefix)]
        for name in [name for name in mine if name not in self._wanted and not server.control.locked()]:
            if not await self._unload(server, name, SILENT_S) and not server.healthy:
                raise ControlError(f"{server.url}: {name} could not be unloaded")
        if not server.healthy:
            while lacking := [name for name in self._wanted if name not in server.held]:
                await self._load(server, lacking[0], self._wanted[lacking[0]])
            # A request that failed since it was asked may know better: then it is asked again.
            if not server.doubt.is_set():
                self._set_healthy(server)

    async def _abort_orphans(self, server: Server) -> None:
        orphans = [] if server.restarted else list(server.orphans)
        server.orphans.clear()
        with anyio.move_on_after(SILENT_S):
            for rid in orphans:
                await self._control.abort(server, rid)

    def _set_down(self, server: Server) -> None:
        if server.healthy:
            server.healthy, server.down_s, server.reported = False, self.clock(), 0

    def _set_healthy(self, server: Server) -> None:
        if not server.healthy:
            server.healthy = True
            self._was_down(server, ok=True)
            self._changed.set()
            self._changed = anyio.Event()

    def _was_down(self, server: Server, *, ok: bool) -> None:
        """Its time without traffic is over, or (not ok) the run is."""
        if server.down_s is not None:
            event = "restart" if server.restarted else "down"
            row = {"event": event, "server": server.url, "start_s": server.down_s, "end_s": self.clock()}
            self.on_event({**row, "ok": ok})
            server.down_s, server.restarted = None, False

    # --- what they report -----------------------------------------------------------------------------------------

    async def loads(self) -> Loads:
        """Requests running and queued over all servers; zeros where one does not say."""
        told: list[Loads] = []
        async with anyio.create_task_group() as tg:
            for server in self._healthy:
                tg.start_soon(self._load_of, server, told)
        return Loads(
            running=sum(each.running for each in told),
            queued=sum(each.queued for each in told),
            kv_used=max((each.kv_used for each in told), default=0.0),
            down=len(self.all) - len(self._healthy),
            complete=len(told) == len(self.all),
        )

    async def _load_of(self, server: Server, told: list[Loads]) -> None:
        try:
            running, queued, kv_used = await self._control.loads(server)
        except ControlError:
            return
        server.reported = running + queued
        told.append(Loads(running=running, queued=queued, kv_used=kv_used))

    async def slots(self, episode_tokens: int = 0) -> int:
        """How many adapters every server can hold at once.

        Raises RunError if a server does not serve adapters, ConfigError if it cannot hold an episode of that length."""
        counts = []
        for server in self.all:
            with fatal(server):
                info = await self._control.info(server)
            refuse_small(server.url, info, episode_tokens)
            counts.append(adapter_slots(server.url, info))
        return min(counts)

    # --- adapters -------------------------------------------------------------------------------------------------

    async def load(self, name: str, path: Path) -> None:
        """Load an adapter on every server; returns when all healthy ones have it, of which there is at least one.

        One that is away gets it before its traffic. Raises RunError if one refuses it, or none has it in time."""
        self._wanted[name] = path
        async with anyio.create_task_group() as tg:
            for server in self.all:
                tg.start_soon(self._load_until_held, server, name, path)

    async def unload(self, name: str) -> None:
        """Unload an adapter everywhere; send nothing to it any more before this. Returns when its users are done.

        A server that is away, or does not answer, is left alone: `watch` unloads what it should not hold."""
        self._wanted.pop(name, None)
        async with anyio.create_task_group() as tg:
            for server in self.all:
                server.held.pop(name, None)
                if server.healthy:
                    tg.start_soon(self._unload, server, name, _LOAD_S)

    async def resync(self, adapters: Mapping[str, Path]) -> None:
        """Make every healthy server hold exactly these adapters of this run; other runs' adapters are not touched."""
        self._wanted = dict(adapters)
        for server in self._healthy:
            with fatal(server):
                listed = await self._control.adapters(server)
            for name in listed:
                if name.startswith(self._prefix) and name not in adapters:
                    await self._unload(server, name, _LOAD_S)
        for name, path in adapters.items():
            await self.load(name, path)

    async def _load_until_held(self, server: Server, name: str, path: Path) -> None:
        last = "no answer"
        with anyio.move_on_after(_LOAD_S):
            while self._wanted.get(name) == path and (server.healthy or not self._healthy):
                try:
                    await self._load(server, name, path)
                except ControlError as error:
                    last = str(error)
                    await anyio.sleep(_PROBE_S * random.uniform(0.5, 1.0))
                else:
                    return
            return
        raise RunError(f"{server.url}: adapter {name} could not be loaded within {_LOAD_S:g} s: {last}")

    async def _load(self, server: Server, name: str, path: Path) -> None:
        async with server.control:
            if name in server.held:
                return
            start_s = self.clock()
            body = {"lora_name": name, "lora_path": str(await anyio.Path(path).absolute())}
            try:
                reply = await self._control.change(server, "load", body, _LOAD_S)
            except ControlError:
                self._happened("load", server, name, start_s, ok=False)
                raise
            # A retry after a lost answer, or a server that outlived this process: the same files are loaded already.
            loaded = reply.get("loaded_adapters")
            again = isinstance(loaded, dict) and Path(str(loaded.get(name, ""))).name == path.name
            ok = reply.get("success") is True or again
            self._happened("load", server, name, start_s, ok=ok)
            if not ok:
                reason = reply.get("error_message") or orjson.dumps(reply).decode()[:300]
                raise RunError(f"{server.url} refuses adapter {name} ({path}): {reason}")
            server.held[name] = path

    async def _unload(self, server: Server, name: str, limit_s: float) -> bool:
        """Whether the server answered."""
        async with server.control:
            start_s = self.clock()
            server.held.pop(name, None)
            reply: dict[str, Any] = {}
            try:
                reply = await self._control.change(server, "unload", {"lora_name": name}, limit_s)
            except ControlError as error:
                _log.warning("unload got no answer", server=server.url, adapter=name, error=str(error))
            self._happened("unload", server, name, start_s, ok=reply.get("success") is True)
            return bool(reply)

    def _happened(self, event: str, server: Server, adapter: str, start_s: float, *, ok: bool) -> None:
        row = {"event": event, "server": server.url, "adapter": adapter, "version": adapter_version(adapter)}
        self.on_event({**row, "start_s": start_s, "end_s": self.clock(), "ok": ok})
