"""A scripted LLM endpoint, OpenAI-compatible and SGLang-native: it plays tool, user and judge without a model.

request ─▶ understood (its route) ─▶ fault drawn ─▶ latency ─▶ each item: cassette, else rules (players) ─▶ reply

Its own process (`python -m engine.scripted endpoint`), so that a client is tested over real HTTP; also made in process
by tests (`application`).
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import anyio
import orjson
from aiohttp import web

from engine.scripted.calls import BadRequestError, Item, ScriptedOutput, ScriptedRequest
from engine.scripted.cassette import Cassette, digest
from engine.scripted.chat_route import chat_call
from engine.scripted.fault_ledger import FaultLedger
from engine.scripted.faults import Faults, FaultWindow, ServerFault
from engine.scripted.native_route import native_call
from engine.scripted.wire import error_reply, failure, json_reply

_MOST_BODY_BYTES = 64 << 20
_UNLOCKED = ("/ready", "/health")
_NOTHING = "I have nothing to say to that."
_MISFIT = [["?"]]
"""Fits no field of any reply."""


@dataclass(slots=True, kw_only=True, eq=False)
class ScriptedEndpoint:
    """State of one scripted endpoint."""

    cassette: Cassette = field(default_factory=Cassette)
    faults: Faults = field(default_factory=Faults)
    """Drawn once a request."""
    malformed: Faults = field(default_factory=Faults)
    """Drawn once an item that has a document and whose request succeeds."""
    ledger: FaultLedger = field(default_factory=FaultLedger)
    latency_s: float = 0.0
    """Mean; each request takes 0.5 to 1.5 times as long."""
    down: FaultWindow | None = None
    structured: bool = True
    """Whether it takes JSON schemas."""
    api_key: str | None = None
    seed: int = 0
    requests: int = 0
    """That were understood; so are the items."""
    items: dict[str, int] = field(default_factory=dict)
    """By role."""
    peak: int = 0
    """Most requests in flight at once."""
    largest_batch: int = 0
    _flying: set[str] = field(default_factory=set)
    """The rids of items in flight."""
    _in_flight: int = 0
    _started: float = 0.0
    _first: float | None = None
    """When somebody asked for the first time."""
    _rng: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._rng = random.Random(f"endpoint:{self.seed}")

    def application(self) -> web.Application:
        """All routes."""
        app = web.Application(client_max_size=_MOST_BODY_BYTES, middlewares=[self._keyed])
        app.on_startup.append(self._start)
        app.add_routes(
            [
                web.post("/v1/chat/completions", self.chat),
                web.post("/generate", self.generate),
                web.get("/ready", self.ready),
                web.get("/health", self.ready),
                web.get("/v1/models", self.models),
                web.get("/server_info", self.info),
            ]
        )
        return app

    async def _start(self, _app: web.Application) -> None:
        self._started = anyio.current_time()

    @web.middleware
    async def _keyed(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        given = request.headers.get("Authorization")
        if self.api_key is not None and request.path not in _UNLOCKED and given != f"Bearer {self.api_key}":
            return error_reply(401, "Unauthorized")
        return await handler(request)

    # --- sampling -------------------------------------------------------------------------------------------------

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """`POST /v1/chat/completions`."""
        return await self._answered(request, chat_call)

    async def generate(self, request: web.Request) -> web.StreamResponse:
        """`POST /generate`, one text or a batch of them."""
        return await self._answered(request, native_call)

    async def _answered(self, request: web.Request, understood: Callable[..., ScriptedRequest]) -> web.StreamResponse:
        try:
            call = understood(await request.read(), structured=self.structured)
            rids = {item.rid for item in call.items}
            if len(rids) < len(call.items) or rids & self._flying:
                raise BadRequestError(
                    f"Duplicate request ID detected: {', '.join(sorted(rids & self._flying or rids))}"
                )
        except BadRequestError as error:
            return error_reply(400, str(error))
        self._count(call)
        self._flying |= rids
        self._in_flight += 1
        self.peak = max(self.peak, self._in_flight)
        try:
            failed = await self._failed(request, call)
            if failed is not None:
                return failed
            return json_reply(call.reply([await self._said(item, request) for item in call.items]))
        except BadRequestError as error:
            return error_reply(400, str(error))
        finally:
            self._in_flight -= 1
            self._flying -= rids

    def _count(self, call: ScriptedRequest) -> None:
        self.requests += 1
        self.largest_batch = max(self.largest_batch, len(call.items))
        for item in call.items:
            self.items[item.role] = self.items.get(item.role, 0) + 1

    async def _failed(self, request: web.Request, call: ScriptedRequest) -> web.Response | None:
        """The reply to a request that fails, or None; takes the time that the reply to one that succeeds takes."""
        roles = "+".join(sorted({item.role for item in call.items}))
        refused = await self._down(request, roles)
        if refused is not None:
            return refused
        fault = self.faults.draw()
        if fault is ServerFault.HANG:
            await self._injected(fault, request, roles)
            await anyio.sleep_forever()
        await anyio.sleep(self.latency_s * self._rng.uniform(0.5, 1.5))
        if fault is None:
            return None
        await self._injected(fault, request, roles)
        return failure(request, fault)

    async def _said(self, item: Item, request: web.Request) -> ScriptedOutput:
        if item.document is None or item.player is None:
            return ScriptedOutput.of(item, _NOTHING)
        text = self.cassette.reply(item.document)
        if text is None:
            if self.cassette.strict:
                raise BadRequestError(f"the cassette has no reply to the document {digest(item.document)}")
            text = orjson.dumps(item.player.reply()).decode()
        if self.malformed.draw() is not None:
            await self._injected(ServerFault.MALFORMED, request, item.role)
            text = _broken(text, cut=self._rng.random() < 0.5)
        return ScriptedOutput.of(item, text)

    async def _injected(self, fault: ServerFault, request: web.Request, role: str) -> None:
        await self.ledger.record(fault, role=role, route=request.path, at_s=anyio.current_time() - self._started)

    async def _down(self, request: web.Request, role: str = "") -> web.Response | None:
        now = anyio.current_time()
        self._first = now if self._first is None else self._first
        if self.down is None or not self.down.covers(now - self._first):
            return None
        await self._injected(ServerFault.DOWN, request, role)
        return failure(request, ServerFault.DOWN)

    # --- information ----------------------------------------------------------------------------------------------

    async def ready(self, request: web.Request) -> web.Response:
        """`GET /ready` and `GET /health`."""
        refused = await self._down(request)
        return web.Response() if refused is None else refused

    async def models(self, request: web.Request) -> web.Response:
        """`GET /v1/models`; any name is taken."""
        card = {"id": "scripted", "object": "model", "owned_by": "synth-engine"}
        refused = await self._down(request)
        return json_reply({"object": "list", "data": [card]}) if refused is None else refused

    async def info(self, _request: web.Request) -> web.Response:
        """`GET /server_info`: what was counted; answered while the endpoint is down, too."""
        counted = {
            "requests": self.requests,
            "items": sum(self.items.values()),
            "as": self.items,
            "faults": self.ledger.counts,
            "peak": self.peak,
            "largest_batch": self.largest_batch,
        }
        return json_reply({"mock": counted})


def _broken(text: str, *, cut: bool) -> str:
    """Half of a text; or, where it is an object, valid JSON whose first field has a type that no schema allows."""
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        value = None
    if cut or not isinstance(value, dict) or not value:
        return text[: len(text) // 2]
    return orjson.dumps({**value, next(iter(value)): _MISFIT}).decode()
