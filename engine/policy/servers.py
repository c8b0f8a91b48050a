"""The policy servers' control plane: which are healthy, which adapters each holds, where a group goes. I/O only.

Which versions to hold is engine.core.versions' decision. A server that restarted has lost its adapters: it gets no
traffic until :meth:`Servers.watch` has pushed them again. The protocol is SGLang's (SGLANG_API.md sections 3 and 6):
a name is never reused, a load of a loaded name is refused, an unload waits for its users.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from zlib import crc32

import aiohttp
import anyio
import orjson
import structlog

from engine.errors import RunError
from engine.policy.capacity import adapter_slots, refuse_small
from engine.rundir import adapter_version

_log = structlog.get_logger(__name__)
_PROBE_S = 0.5
_CONTROL_S = 10.0
_KV_FULL = 0.9
_LOAD_S = 120.0
"""How long a load may take on one server, its restart included; an unload waits for its users as long."""

Event = dict[str, Any]
TRANSPORT = (aiohttp.ClientError, TimeoutError, OSError)
"""What a broken connection raises."""


class ControlError(Exception):
    """A server could not be asked, or answered nonsense; the caller tries again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loads:
    """What all servers report together."""

    running: int
    queued: int
    kv_used: float
    """Share of the KV cache in use, of the fullest server."""
    complete: bool = True
    """Whether every server answered."""

    @property
    def room(self) -> bool:
        """Whether more episodes would be welcome."""
        return self.complete and not self.queued and self.kv_used < _KV_FULL


@dataclass(slots=True, kw_only=True, eq=False)
class Server:
    """One policy server, as known here."""

    url: str
    healthy: bool = False
    down_s: float | None = None
    """Since when it gets no traffic, on the run's clock."""
    restarted: bool = False
    """Whether it refused a connection or lost its adapters since then; else it was only silent."""
    held: dict[str, Path] = field(default_factory=dict)
    """Adapters that it confirmed."""
    doubt: anyio.Event = field(default_factory=anyio.Event)
    """Set when a request failed as if it had restarted: look now."""
    control: anyio.Lock = field(default_factory=anyio.Lock)
    """One adapter change at a time; the server serializes them anyway."""


class Servers:
    """All policy servers of a run.

    `run_id` is the prefix of this run's adapter names; `on_event` gets one object per load, unload, abort and
    time without traffic (down), with start_s and end_s on `clock`."""

    def __init__(
        self, urls: Sequence[str], *, run_id: str, clock: Callable[[], float], on_event: Callable[[Event], None]
    ) -> None:
        if not urls:
            raise RunError("no policy server: name at least one in policy.urls")
        self.all = [Server(url=url.rstrip("/")) for url in urls]
        self.clock, self.on_event = clock, on_event
        self._prefix = f"{run_id}-v"
        self._wanted: dict[str, Path] = {}
        self._changed = anyio.Event()
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(total=None)
        self._session = aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

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

    def route(self, group_id: str) -> str | None:
        """The server of a group: always the same while it is healthy, so that siblings share its prefix cache.

        None while no server is healthy."""
        healthy = [server.url for server in self.all if server.healthy]
        if len(healthy) > 1:
            return max(healthy, key=lambda url: crc32(f"{group_id} {url}".encode()))
        return healthy[0] if healthy else None

    async def place(self, group_id: str) -> str:
        """`route`, waiting for a healthy server; the caller has a deadline."""
        while (url := self.route(group_id)) is None:
            await self._changed.wait()
        return url

    def suspect(self, url: str) -> None:
        """A request failed there as if it had restarted: no traffic until `watch` has looked."""
        for server in self.all:
            if server.url == url:
                self._set_down(server)
                server.restarted = True
                server.doubt.set()

    async def watch(self) -> None:
        """Look after every server until cancelled: push lost adapters, then let traffic in again."""
        async with anyio.create_task_group() as tg:
            for server in self.all:
                tg.start_soon(self._watch, server)

    async def _watch(self, server: Server) -> None:
        while True:
            with anyio.move_on_after(_PROBE_S * random.uniform(0.8, 1.2)):
                await server.doubt.wait()
            server.doubt = anyio.Event()
            try:
                held = list(server.held)
                listed = await self._listed(server)
                if lost := [name for name in held if name not in listed and name in server.held]:
                    _log.warning("policy server lost its adapters", server=server.url, adapters=lost)
                    self._set_down(server)
                    server.restarted = True
                    await self._push(server)
                self._set_healthy(server)
                # What an unload that got no answer left behind would fill the server's adapter slots.
                for name in [name for name in listed if name not in self._wanted and not server.control.locked()]:
                    await self._unload(server, name)
            except ControlError as error:
                if server.healthy:
                    _log.warning("policy server is not well", server=server.url, error=str(error))
                self._set_down(server)
                await anyio.sleep(_PROBE_S / 2)

    def _set_down(self, server: Server) -> None:
        if server.healthy:
            server.healthy, server.down_s = False, self.clock()

    def _set_healthy(self, server: Server) -> None:
        if not server.healthy:
            server.healthy = True
            if server.down_s is not None:
                event = "restart" if server.restarted else "down"
                row = {"event": event, "server": server.url, "start_s": server.down_s, "end_s": self.clock()}
                self.on_event({**row, "ok": True})
                server.down_s, server.restarted = None, False
            self._changed.set()
            self._changed = anyio.Event()

    async def loads(self) -> Loads:
        """Requests running and queued over all servers; zeros where one does not say."""
        told: list[Loads] = []
        async with anyio.create_task_group() as tg:
            for server in self.all:
                tg.start_soon(self._load_of, server, told)
        return Loads(
            running=sum(each.running for each in told),
            queued=sum(each.queued for each in told),
            kv_used=max((each.kv_used for each in told), default=0.0),
            complete=len(told) == len(self.all),
        )

    async def _load_of(self, server: Server, told: list[Loads]) -> None:
        try:
            async with _understood(server, "/v1/loads"):
                ranks = (await self._ask(server, "GET", "/v1/loads"))["loads"] if server.healthy else None
                if ranks is not None:
                    running, queued = (
                        sum(int(rank.get(key, 0)) for rank in ranks) for key in ("num_running_reqs", "num_waiting_reqs")
                    )
                    used = max((float(rank.get("token_usage", 0.0)) for rank in ranks), default=0.0)
                    told.append(Loads(running=running, queued=queued, kv_used=used))
        except ControlError:
            return

    async def slots(self, episode_tokens: int = 0) -> int:
        """How many adapters every server can hold at once.

        Raises RunError if a server does not serve adapters, ConfigError if it cannot hold an episode of that length."""
        counts = []
        for server in self.all:
            async with _fatal(server):
                info = await self._ask(server, "GET", "/server_info")
            refuse_small(server.url, info, episode_tokens)
            counts.append(adapter_slots(server.url, info))
        return min(counts)

    # --- adapters -------------------------------------------------------------------------------------------------

    async def load(self, name: str, path: Path) -> None:
        """Load an adapter on every server; returns when all have it.

        A server that restarts meanwhile is waited for. Raises RunError if one refuses it."""
        self._wanted[name] = path
        async with anyio.create_task_group() as tg:
            for server in self.all:
                tg.start_soon(self._load_until_held, server, name, path)

    async def unload(self, name: str) -> None:
        """Unload an adapter everywhere; send nothing to it any more before this. Returns when its users are done.

        A server that does not answer is left alone: it has lost its adapters, and this one is not pushed again."""
        self._wanted.pop(name, None)
        async with anyio.create_task_group() as tg:
            for server in self.all:
                tg.start_soon(self._unload, server, name)

    async def resync(self, adapters: Mapping[str, Path]) -> None:
        """Make every server hold exactly these adapters of this run; other runs' adapters are not touched."""
        self._wanted = dict(adapters)
        for server in self.all:
            async with _fatal(server):
                strangers = [name for name in await self._listed(server) if name not in adapters]
            for name in strangers:
                await self._unload(server, name)
        for name, path in adapters.items():
            await self.load(name, path)

    async def _load_until_held(self, server: Server, name: str, path: Path) -> None:
        last = "no answer"
        with anyio.move_on_after(_LOAD_S):
            while self._wanted.get(name) == path:
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
                reply = await self._ask(server, "POST", "/load_lora_adapter", body, _LOAD_S)
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

    async def _push(self, server: Server) -> None:
        """Give a restarted server everything it should hold."""
        server.held.clear()
        for name, path in list(self._wanted.items()):
            await self._load(server, name, path)

    async def _unload(self, server: Server, name: str) -> None:
        async with server.control:
            start_s = self.clock()
            server.held.pop(name, None)
            try:
                reply = await self._ask(server, "POST", "/unload_lora_adapter", {"lora_name": name}, _LOAD_S)
            except ControlError as error:
                _log.warning("unload got no answer", server=server.url, adapter=name, error=str(error))
                reply = {}
            self._happened("unload", server, name, start_s, ok=reply.get("success") is True)

    async def _listed(self, server: Server) -> dict[str, str]:
        """Adapters of this run on a server: name to path."""
        body = await self._ask(server, "GET", "/v1/models")
        async with _understood(server, "/v1/models"):
            named = {str(card["id"]): str(card.get("root", "")) for card in body["data"]}
        return {name: root for name, root in named.items() if name.startswith(self._prefix)}

    def _happened(self, event: str, server: Server, adapter: str, start_s: float, *, ok: bool) -> None:
        row = {"event": event, "server": server.url, "adapter": adapter, "version": adapter_version(adapter)}
        self.on_event({**row, "start_s": start_s, "end_s": self.clock(), "ok": ok})

    # --- HTTP -----------------------------------------------------------------------------------------------------

    async def _answer(self, server: Server) -> None:
        """Ask /ready until it says yes."""
        ready = False
        while not ready:
            try:
                async with _transport(server, _CONTROL_S), self._http.get(f"{server.url}/ready") as response:
                    await response.read()
                    ready = response.status == 200
            except ControlError:
                pass
            await anyio.sleep(0 if ready else _PROBE_S * random.uniform(0.2, 0.5))

    async def _ask(
        self,
        server: Server,
        method: str,
        route: str,
        body: Mapping[str, Any] | None = None,
        limit_s: float = _CONTROL_S,
    ) -> dict[str, Any]:
        """One control request; 200 and 400 are answers.

        Raises ControlError for anything else."""
        content = None if body is None else orjson.dumps(body)
        headers = {"Content-Type": "application/json"}
        async with (
            _transport(server, limit_s),
            self._http.request(method, server.url + route, data=content, headers=headers) as response,
        ):
            text = await response.read()
        if response.status not in (200, 400):
            raise ControlError(f"{server.url}{route}: HTTP {response.status}: {text[:200]!r}")
        try:
            reply = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            raise ControlError(f"{server.url}{route}: not JSON: {text[:200]!r}") from error
        if not isinstance(reply, dict):
            raise ControlError(f"{server.url}{route}: not an object: {text[:200]!r}")
        return reply

    @property
    def _http(self) -> aiohttp.ClientSession:
        assert self._session is not None, "use `async with Servers(...)`"
        return self._session


@asynccontextmanager
async def _transport(server: Server, limit_s: float) -> AsyncIterator[None]:
    """Bound a request in time, and name the server in what goes wrong."""
    try:
        with anyio.fail_after(limit_s):
            yield
    except TRANSPORT as error:
        raise ControlError(f"{server.url}: {type(error).__name__}: {error}") from error


@asynccontextmanager
async def _understood(server: Server, route: str) -> AsyncIterator[None]:
    """Reading a reply that may have any shape."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ControlError(f"{server.url}{route}: not what SGLang answers: {error!r}") from error


@asynccontextmanager
async def _fatal(server: Server) -> AsyncIterator[None]:
    """A control request without which the run cannot go on."""
    try:
        yield
    except ControlError as error:
        raise RunError(f"policy server {server.url} does not answer as SGLang does: {error}") from error
