"""Control requests to one policy server, in SGLang's words (docs/sglang.md); nothing is decided here.

Whatever goes wrong is a ControlError that names the server. A request ends at once when its server is cut off.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import aiohttp
import anyio
import orjson

from engine.errors import RunError
from engine.policy.routing import Server

TRANSPORT = (aiohttp.ClientError, TimeoutError, OSError)
"""What a broken connection raises."""
SILENT_S = 3.0
"""A server that does not answer within this what needs no generation is hung."""
_CONTROL_S = 10.0
_ABORT_S = 2.0


class ControlError(Exception):
    """A server could not be asked, or answered nonsense; the caller tries again."""


class GoneError(ControlError):
    """Nobody listens there: the process is gone."""


class Control:
    """Asks servers, with `headers` on every request; used with `async with`."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._headers = headers
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            # Whoever waits for a hung server must not keep others from asking theirs.
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=self._headers,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def ready(self, server: Server) -> bool:
        """Whether it says that it is ready.

        Raises ControlError if it says nothing."""
        status, _ = await self._exchange(server, "GET", "/ready", None, _CONTROL_S)
        return status == 200

    async def info(self, server: Server) -> dict[str, Any]:
        """`/server_info`.

        Raises ControlError."""
        return await self._ask(server, "GET", "/server_info")

    async def loads(self, server: Server) -> tuple[int, int, float]:
        """Requests running, requests queued, share of the KV cache in use.

        Raises ControlError."""
        with _understood(server, "/v1/loads"):
            ranks = (await self._ask(server, "GET", "/v1/loads", None, SILENT_S))["loads"]
            running, queued = (
                sum(int(rank.get(key, 0)) for rank in ranks) for key in ("num_running_reqs", "num_waiting_reqs")
            )
            return running, queued, max((float(rank.get("token_usage", 0.0)) for rank in ranks), default=0.0)

    async def adapters(self, server: Server) -> list[str]:
        """Names of the models and adapters that it serves; needs no generation.

        Raises ControlError."""
        body = await self._ask(server, "GET", "/v1/models", None, SILENT_S)
        with _understood(server, "/v1/models"):
            return [str(card["id"]) for card in body["data"]]

    async def change(self, server: Server, what: str, body: Mapping[str, Any], limit_s: float) -> dict[str, Any]:
        """`what` (load, unload) with an adapter; the answer may be a refusal.

        Raises ControlError."""
        return await self._ask(server, "POST", f"/{what}_lora_adapter", body, limit_s)

    async def abort(self, server: Server, rid: str) -> None:
        """Tell it that nobody waits for a request any more; it polls for lost connections only every few seconds.

        Raises ControlError."""
        await self._exchange(server, "POST", "/abort_request", {"rid": rid}, _ABORT_S)

    async def _ask(
        self,
        server: Server,
        method: str,
        route: str,
        body: Mapping[str, Any] | None = None,
        limit_s: float = _CONTROL_S,
    ) -> dict[str, Any]:
        """One request whose answer is an object; 200 and 400 are answers."""
        status, text = await self._exchange(server, method, route, body, limit_s)
        if status in (401, 403):
            raise ControlError(f"{server.url}{route}: HTTP {status}: it wants an API key: see policy.api_key_env")
        if status not in (200, 400):
            raise ControlError(f"{server.url}{route}: HTTP {status}: {text[:200]!r}")
        try:
            reply = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            raise ControlError(f"{server.url}{route}: not JSON: {text[:200]!r}") from error
        if not isinstance(reply, dict):
            raise ControlError(f"{server.url}{route}: not an object: {text[:200]!r}")
        return reply

    async def _exchange(
        self, server: Server, method: str, route: str, body: Mapping[str, Any] | None, limit_s: float
    ) -> tuple[int, bytes]:
        """Status and content of one request, bounded in time."""
        assert self._session is not None, "use `async with Control(...)`"
        content = None if body is None else orjson.dumps(body)
        with anyio.move_on_after(limit_s) as scope:
            server.asked.add(scope)
            try:
                request = self._session.request(method, server.url + route, data=content)
                async with request as response:
                    return response.status, await response.read()
            except TRANSPORT as error:
                gone = isinstance(error, aiohttp.ClientConnectorError)
                kind = GoneError if gone else ControlError
                raise kind(f"{server.url}: {type(error).__name__}: {error}") from error
            finally:
                server.asked.discard(scope)
        raise ControlError(f"{server.url}{route}: no answer within {limit_s:g} s, or cut off before")


@contextmanager
def _understood(server: Server, route: str) -> Iterator[None]:
    """Reading a reply that may have any shape."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ControlError(f"{server.url}{route}: not what SGLang answers: {error!r}") from error


@contextmanager
def fatal(server: Server) -> Iterator[None]:
    """A control request without which the run cannot go on.

    Raises RunError where it would raise ControlError."""
    try:
        yield
    except ControlError as error:
        raise RunError(f"policy server {server.url} does not answer as SGLang does: {error}") from error
