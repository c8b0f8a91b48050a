"""A mock policy server: the part of SGLang's HTTP API that the engine uses, without a model.

It decodes each prompt, plays the tiny family's script and answers after a set latency, with seeded faults. Its own
process, so that a load test measures the engine; also made in process by tests (`application`).
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import anyio
import orjson
from aiohttp import web

from engine.chat.chat_format import ChatFormat
from engine.scripted.faults import Faults, ServerFault
from engine.scripted.policy import made_up_logprobs
from engine.scripted.script import Character, continuation
from engine.scripted.wire import error_reply, failure, json_reply

_MOST_BODY_BYTES = 64 << 20


@dataclass(slots=True, kw_only=True, eq=False)
class MockServer:
    """State of one mock server."""

    chat: ChatFormat
    faults: Faults = field(default_factory=Faults)
    latency_s: float = 0.05
    jitter: float = 0.0
    """Share of `latency_s` by which a reply comes earlier or later."""
    slots: int = 8
    """Adapters it holds at once."""
    seed: int = 0
    echo_adapter: bool = True
    """Whether replies name the adapter used, as the embedded server does and SGLang does not."""
    adapters: dict[str, str] = field(default_factory=dict)
    requests: int = 0
    aborts: int = 0
    """Requests that a client aborted while they ran."""
    peak: int = 0
    """Most requests in flight at once."""
    _flying: dict[str, anyio.Event] = field(default_factory=dict)
    """By rid: set when the request is aborted."""
    _resume: anyio.Event | None = None
    """Set while every request stands still."""

    def application(self) -> web.Application:
        """All routes."""
        app = web.Application(client_max_size=_MOST_BODY_BYTES)
        app.add_routes(
            [
                web.post("/generate", self.generate),
                web.post("/load_lora_adapter", self.load),
                web.post("/unload_lora_adapter", self.unload),
                web.post("/abort_request", self.abort),
                web.get("/ready", self.ready),
                web.get("/server_info", self.info),
                web.get("/v1/loads", self.loads),
                web.get("/v1/models", self.models),
            ]
        )
        return app

    # --- sampling -------------------------------------------------------------------------------------------------

    async def generate(self, request: web.Request) -> web.StreamResponse:
        """`POST /generate`, one prompt."""
        body = orjson.loads(await request.read())
        rid, adapter = body["rid"], body.get("lora_path")
        if rid in self._flying:
            return error_reply(400, f"Duplicate request ID detected: {rid}")
        if adapter is not None and adapter not in self.adapters:
            return error_reply(400, f"The following requested LoRA adapters are not loaded: {adapter}")
        self.requests += 1
        aborted = self._flying[rid] = anyio.Event()
        self.peak = max(self.peak, len(self._flying))
        fault = self.faults.draw()
        try:
            with anyio.move_on_after(None if fault is ServerFault.HANG else self._latency_s(rid)):
                await aborted.wait()
            if self._resume is not None:
                await self._resume.wait()
        finally:
            self._flying.pop(rid, None)
        if fault is not None and (failed := failure(request, fault)) is not None:
            return failed
        reply = self._reply(body, aborted=aborted.is_set() or fault is ServerFault.ABORT)
        if fault is ServerFault.TRUNCATE:
            reply["meta_info"]["output_token_logprobs"].pop()
        return json_reply(reply)

    def _latency_s(self, rid: str) -> float:
        drawn = random.Random(f"{self.seed}:{rid}").uniform(-1.0, 1.0) if self.jitter else 0.0
        return self.latency_s * (1.0 + self.jitter * drawn)

    def _reply(self, body: dict[str, Any], *, aborted: bool) -> dict[str, Any]:
        # Siblings share their prompt at first; the rid, without its attempt, tells their characters apart.
        episode = body["rid"].partition("@")[0]
        character = Character.drawn(random.Random(f"{self.seed}:{episode}"))
        sampled = self.chat.encode(continuation(self.chat.decode(body["input_ids"]), character))
        sampled.append(self.chat.stop_token_ids[0])
        limit = body["sampling_params"]["max_new_tokens"]
        ids = list(sampled[: len(sampled) // 2 if aborted else limit])
        finish: dict[str, Any] = {"type": "stop", "matched": ids[-1]} if ids else {}
        if aborted:
            finish = {"type": "abort", "message": "Aborted", "status_code": None, "err_type": None}
        elif len(ids) < len(sampled):
            finish = {"type": "length", "length": limit}
        logprobs = made_up_logprobs(ids).tolist()
        meta = {
            "id": body["rid"],
            "finish_reason": finish,
            "prompt_tokens": len(body["input_ids"]),
            "completion_tokens": len(ids),
            "cached_tokens": 0,
            "weight_version": "default",
            "output_token_logprobs": [[logprob, number, None] for logprob, number in zip(logprobs, ids, strict=True)],
            **({"lora_path": body.get("lora_path")} if self.echo_adapter else {}),
        }
        return {"text": "", "output_ids": ids, "meta_info": meta}

    async def abort(self, request: web.Request) -> web.Response:
        """`POST /abort_request`: matches prefixes, as SGLang does."""
        rid = orjson.loads(await request.read())["rid"]
        for flying, event in list(self._flying.items()):
            if flying.startswith(rid):
                self.aborts += 1
                event.set()
        return web.Response()

    # --- adapters -------------------------------------------------------------------------------------------------

    async def load(self, request: web.Request) -> web.Response:
        """`POST /load_lora_adapter`; a loaded name is refused."""
        body = orjson.loads(await request.read())
        name, path = body["lora_name"], body["lora_path"]
        if name in self.adapters:
            return self._changed(f"Failed to load LoRA adapter {name}: already loaded")
        if not await anyio.Path(path, "adapter_config.json").exists():
            return self._changed(f"Failed to load LoRA adapter {name}: no adapter_config.json in {path}")
        if len(self.adapters) >= self.slots:
            return self._changed(f"Failed to load LoRA adapter {name}: all {self.slots} slots are in use")
        if self.faults.abort_on_load:
            for event in self._flying.values():
                event.set()
        if self.faults.pause_on_load_s:
            self._resume = anyio.Event()
            await anyio.sleep(self.faults.pause_on_load_s)
            self._resume.set()
            self._resume = None
        self.adapters[name] = path
        return self._changed("")

    async def unload(self, request: web.Request) -> web.Response:
        """`POST /unload_lora_adapter`."""
        name = orjson.loads(await request.read())["lora_name"]
        known = self.adapters.pop(name, None)
        return self._changed("" if known else f"LoRA adapter {name} is not loaded")

    def _changed(self, problem: str) -> web.Response:
        value = {"success": not problem, "error_message": problem, "loaded_adapters": self.adapters}
        return json_reply({**value, "rid": None, "http_worker_ipc": None}, 400 if problem else 200)

    # --- information ----------------------------------------------------------------------------------------------

    async def ready(self, _request: web.Request) -> web.Response:
        """`GET /ready`."""
        return web.Response()

    async def info(self, _request: web.Request) -> web.Response:
        """`GET /server_info`, with what the mock counted."""
        faults = {fault.value: count for fault, count in self.faults.drawn.items()}
        counted = {"requests": self.requests, "aborts": self.aborts, "peak": self.peak, "faults": faults}
        return json_reply({"max_loaded_loras": self.slots, "mock": counted})

    async def loads(self, _request: web.Request) -> web.Response:
        """`GET /v1/loads`: nothing ever queues here."""
        rank = {"dp_rank": 0, "num_running_reqs": len(self._flying), "num_waiting_reqs": 0, "token_usage": 0.0}
        return json_reply({"loads": [rank]})

    async def models(self, _request: web.Request) -> web.Response:
        """`GET /v1/models`."""
        cards = [{"id": "mock", "root": "mock", "parent": None}]
        cards += [{"id": name, "root": path, "parent": "mock"} for name, path in self.adapters.items()]
        return json_reply({"object": "list", "data": cards})
