"""HTTP: SGLang's routes, shapes and status codes over a `PolicyServer`."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime

import anyio
import orjson
from aiohttp import web
from pydantic import BaseModel, ConfigDict, ValidationError

from engine.embedded.lora import AdapterError
from engine.embedded.sequence import FinishKind, Sequence
from engine.embedded.server import PolicyServer
from engine.embedded.wire import RequestError, error_json, generate_reply, parse_generate

_HEALTH_DEADLINE_S = 20.0
_MOST_BODY_BYTES = 256 << 20


class _Load(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    lora_name: str
    lora_path: str
    pinned: bool = False


class _Unload(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    lora_name: str


class _Abort(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    rid: str | None = None
    abort_all: bool = False


def application(server: PolicyServer) -> web.Application:
    """All routes; a `PolicyServer` and its running worker are given."""
    routes = Routes(server)
    app = web.Application(client_max_size=_MOST_BODY_BYTES)
    app.add_routes(
        [
            web.post("/generate", routes.generate),
            web.post("/load_lora_adapter", routes.load_lora_adapter),
            web.post("/unload_lora_adapter", routes.unload_lora_adapter),
            web.post("/abort_request", routes.abort_request),
            web.route("*", "/flush_cache", routes.flush_cache),
            web.get("/health", routes.health),
            web.get("/health_generate", routes.health),
            web.get("/ready", routes.ready),
            web.get("/model_info", routes.model_info),
            web.get("/get_model_info", routes.model_info),
            web.get("/server_info", routes.server_info),
            web.get("/get_server_info", routes.server_info),
            web.get("/v1/loads", routes.loads),
            web.get("/v1/models", routes.models),
        ]
    )
    return app


def _json(value: object, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(value), status=status, content_type="application/json")


def _error(status: int, message: str) -> web.Response:
    return _json({"error": {"message": message}}, status)


class Routes:
    """One coroutine per route."""

    def __init__(self, server: PolicyServer) -> None:
        self._server = server

    async def generate(self, request: web.Request) -> web.StreamResponse:
        """`POST /generate`."""
        try:
            body = parse_generate(await request.read())
            async with self._server.accepted(body) as (sequences, batch):
                if body.stream:
                    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
                    # A client that has left is no error of the server's; its request ends with this block.
                    with suppress(ConnectionResetError):
                        await response.prepare(request)
                        await self._stream(response, sequences[0], logprobs=body.return_logprob)
                    return response
                for sequence in sequences:
                    await sequence.changed.wait()
                failed = next((s for s in sequences if s.finish and s.finish.kind is FinishKind.ERROR), None)
                if failed is not None and failed.finish is not None:
                    return _error(500, failed.finish.message)
                text = self._server.parts.text
                replies = [generate_reply(s, text, logprobs=body.return_logprob) for s in sequences]
                return _json(replies if batch else replies[0])
        except ValidationError as error:
            return _json(error_json(error), 400)
        except RequestError as error:
            return _error(error.status, str(error))

    async def _stream(self, response: web.StreamResponse, sequence: Sequence, *, logprobs: bool) -> None:
        """Server-sent events; every event is cumulative, so a slow reader skips some and loses nothing."""
        finished = False
        while not finished:
            await sequence.changed.wait()
            sequence.changed = anyio.Event()
            finish = sequence.finish
            finished = finish is not None
            value: dict[str, object] = generate_reply(sequence, self._server.parts.text, logprobs=logprobs)
            if finish is not None and finish.kind is FinishKind.ERROR:
                value = {"error": {"message": finish.message}}
            await response.write(b"data: " + orjson.dumps(value) + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()

    async def load_lora_adapter(self, request: web.Request) -> web.Response:
        """`POST /load_lora_adapter`."""
        try:
            body = _Load.model_validate_json(await request.read())
            await self._server.parts.adapters.load_below_root(body.lora_name, body.lora_path)
        except (AdapterError, ValidationError) as error:
            return self._adapter_reply(error)
        return self._adapter_reply(None)

    async def unload_lora_adapter(self, request: web.Request) -> web.Response:
        """`POST /unload_lora_adapter`; answers when the adapter's last request in flight has ended."""
        try:
            body = _Unload.model_validate_json(await request.read())
            await self._server.parts.adapters.unload(body.lora_name)
        except (AdapterError, ValidationError) as error:
            return self._adapter_reply(error)
        return self._adapter_reply(None)

    def _adapter_reply(self, error: AdapterError | ValidationError | None) -> web.Response:
        if isinstance(error, ValidationError):
            return _json(error_json(error), 400)
        value = {
            "success": error is None,
            "error_message": "" if error is None else str(error),
            "loaded_adapters": self._server.parts.adapters.paths,
            "rid": None,
            "http_worker_ipc": None,
        }
        return _json(value, 200 if error is None else 400)

    async def abort_request(self, request: web.Request) -> web.Response:
        """`POST /abort_request`: 200 and empty, also for unknown rids. Unlike SGLang's it never matches prefixes."""
        try:
            body = _Abort.model_validate_json(await request.read())
        except ValidationError as error:
            return _json(error_json(error), 400)
        if body.abort_all or body.rid is not None:
            self._server.abort(None if body.abort_all else body.rid)
        return web.Response()

    async def flush_cache(self, _request: web.Request) -> web.Response:
        """`/flush_cache`: 400 while anything is running or queued."""
        flushed = await self._server.parts.worker.ask(lambda scheduler: scheduler.flush())
        text = "Cache flushed.\n" if flushed else "Flush cache failed.\n"
        return web.Response(text=text, status=200 if flushed else 400)

    async def health(self, _request: web.Request) -> web.Response:
        """`/health`, `/health_generate`: 200 when tokens are drawn, 503 when there is none in 20 s."""
        with anyio.move_on_after(_HEALTH_DEADLINE_S) as scope:
            await self._server.alive()
        return web.Response(status=503 if scope.cancelled_caught else 200)

    async def ready(self, _request: web.Request) -> web.Response:
        """`/ready`: 200 without generation."""
        return web.Response()

    async def model_info(self, _request: web.Request) -> web.Response:
        """`/model_info`."""
        server, shape = self._server, self._server.parts.decoder.shape
        value = {
            "model_path": str(server.settings.model),
            "tokenizer_path": str(server.settings.model),
            "served_model_name": server.settings.served_name,
            "is_generation": True,
            "weight_version": "default",
            "architectures": [shape.architecture],
            "vocab_size": shape.vocabulary,
            "context_length": shape.context,
        }
        return _json(value)

    async def server_info(self, _request: web.Request) -> web.Response:
        """`/server_info`: the settings under SGLang's names."""
        server = self._server
        settings, adapters = server.settings, server.parts.adapters
        value = {
            "model_path": str(settings.model),
            "served_model_name": settings.served_name,
            "device": "cpu",
            "dtype": "float32",
            "enable_lora": True,
            "max_lora_rank": adapters.limits.max_rank,
            "max_loaded_loras": adapters.limits.max_adapters,
            "max_loras_per_batch": adapters.limits.max_adapters + 1,
            "max_running_requests": settings.limits.max_running,
            "max_queued_requests": settings.max_queued,
            "max_total_num_tokens": settings.limits.kv_tokens,
            "context_length": server.parts.decoder.shape.context,
            "random_seed": settings.seed,
            "loaded_adapters": adapters.paths,
            "internal_states": [{**server.load(), "model_busy_s": server.parts.gauges.busy_s}],
            "version": "embedded",
        }
        return _json(value)

    async def loads(self, _request: web.Request) -> web.Response:
        """`/v1/loads`."""
        value = {"timestamp": datetime.now(UTC).isoformat(), "version": "embedded", "loads": [self._server.load()]}
        return _json(value)

    async def models(self, _request: web.Request) -> web.Response:
        """`/v1/models`: the base and every adapter."""
        name = self._server.settings.served_name
        context = self._server.parts.decoder.shape.context
        common = {"object": "model", "owned_by": "synth-engine", "max_model_len": context}
        rows = [{"id": name, "root": name, "parent": None, **common}]
        for adapter, path in self._server.parts.adapters.paths.items():
            rows.append({"id": adapter, "root": path, "parent": name, **common})
        return _json({"object": "list", "data": rows})
