"""The policy over HTTP: SGLang's native `/generate`, token ids in and out (docs/architecture.md).

Every attempt has a request id of its own, of fixed width for a turn's id, so that none is a prefix of another (SGLang
aborts by prefix). `lora_path` goes with every request: without it a server would silently sample from the base.
A result is used at most once; what it says is checked before anything is believed. An attempt on a server that is cut
off, or gone, is given up, and the turn begins anew on another.
"""

from __future__ import annotations

import math
import os
import time
from array import array
from collections.abc import Sequence
from functools import lru_cache
from itertools import count
from types import TracebackType
from typing import Any, Literal, Protocol, Self

import aiohttp
import anyio
import numpy as np
import orjson
from yarl import URL

from engine.errors import Ended, PolicyError
from engine.http.attempts import backoff_s, excerpt
from engine.policy.control import TRANSPORT
from engine.policy.routing import Server
from engine.policy.servers import Servers
from engine.types import Completion, StopReason, Turn

_BACKOFF_S, _LONGEST_BACKOFF_S = 0.2, 5.0
_IDLE_S = 3.0
"""A connection that was idle for longer is not used again: SGLang closes it after five seconds, perhaps just then."""
_CONTEXT_SPARE_TOKENS = 7
"""SGLang refuses a prompt that leaves fewer of the context, and cuts a completion two tokens short of its end."""


class Vocabulary(Protocol):
    """The part of engine.chat.chat_format.ChatFormat that a client uses."""

    stop_token_ids: tuple[int, ...]
    vocab_size: int
    context_length: int

    def decode(self, ids: Sequence[int]) -> str:
        """The text of sampled ids, without a final stop token."""
        ...


class RetryError(Exception):
    """One attempt failed in a way that another may not; `event` is its word in swaps.jsonl.

    An attempt that was not aborted, and is followed by one on another server, is `moved` there."""

    event = "retry"


class AbortedError(RetryError):
    """The server aborted the request."""

    event = "abort"


class HttpPolicy:
    """A Policy that samples on `servers`; `connections` bounds the requests in flight."""

    def __init__(self, servers: Servers, chat: Vocabulary, *, connections: int) -> None:
        self._servers, self._chat, self._connections = servers, chat, connections
        self._session: aiohttp.ClientSession | None = None
        # A restarted engine plays the same turns again, perhaps while the server still works on the old requests.
        self._nonce, self._numbers = os.urandom(4).hex(), count()

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._connections, keepalive_timeout=_IDLE_S),
            timeout=aiohttp.ClientTimeout(total=None),
            cookie_jar=aiohttp.DummyCookieJar(),
            # Replies come as they are: nobody unpacks them here, and every header costs time on both sides.
            auto_decompress=False,
            skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent"),
            headers=self._servers.headers,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def complete(self, turn: Turn) -> Completion:
        """Sample one completion; what a hiccup explains is tried again as long as the turn's time allows.

        A request under way has all of that time: whoever cancels it (the turn's deadline) frees the server too. Raises
        PolicyError that names the server and the last reason, Ended if the model's context is full."""
        if self._room(turn) < 1:
            raise Ended(StopReason.TOKENS)
        last_start = time.monotonic() + turn.limits.turn_s
        for attempt in count():
            server = await self._servers.place(turn.group_id)
            start_s = self._servers.clock()
            try:
                return await self._attempt(server, turn, attempt)
            except RetryError as error:
                moved = not server.healthy and self._servers.route(turn.group_id) is not None
                event = "moved" if moved and error.event == "retry" else error.event
                row = {"event": event, "server": server.url, "adapter": turn.adapter, "turn": turn.id}
                self._servers.on_event({**row, "start_s": start_s, "end_s": self._servers.clock(), "ok": False})
                # Another server has not failed yet; the same one may need a moment.
                pause_s = 0 if moved else backoff_s(attempt, _BACKOFF_S, _LONGEST_BACKOFF_S)
                if time.monotonic() + pause_s > last_start:
                    raise PolicyError(f"{server.url}: {turn.id} failed {attempt + 1} times: {error}") from error
                await anyio.sleep(pause_s)
        raise AssertionError("count() does not end")

    async def _attempt(self, server: Server, turn: Turn, attempt: int) -> Completion:
        rid = f"{turn.id}~{attempt}~{self._nonce}{next(self._numbers):08x}"
        with anyio.CancelScope() as scope:
            server.flying[rid] = scope
            try:
                status, content = await self._post(server.url, self._request(turn, rid))
            except TRANSPORT as error:
                # A connection that broke may be an accident; one that is refused is a server that is gone.
                if isinstance(error, aiohttp.ClientConnectorError):
                    self._servers.suspect(server)
                raise RetryError(f"{type(error).__name__}: {error}") from error
            except anyio.get_cancelled_exc_class():
                # A server that was cut off hears it when it is back: nobody waits for it.
                if not scope.cancel_called:
                    await self._servers.abort(server, rid)
                raise
            finally:
                del server.flying[rid]
        if scope.cancelled_caught:
            raise RetryError("the server was silent, and another one was not")
        reply = self._read(server, turn, status, content)
        if reply["meta_info"]["finish_reason"]["type"] == "abort":
            raise AbortedError("the server aborted the request")
        return self._completion(server.url, turn, rid, reply)

    def _room(self, turn: Turn) -> int:
        """Tokens that SGLang lets a completion have behind this prompt."""
        return self._chat.context_length - len(turn.ids) - _CONTEXT_SPARE_TOKENS

    def _request(self, turn: Turn, rid: str) -> bytes:
        sampling = turn.sampling
        parameters: dict[str, Any] = {
            "max_new_tokens": min(self._room(turn), turn.limits.completion_tokens),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "stop_token_ids": self._chat.stop_token_ids,
            "skip_special_tokens": False,
        }
        if sampling.stop:
            parameters |= {"stop": sampling.stop, "no_stop_trim": True}
        # orjson writes a numpy view of the ledger several times faster than a list of its numbers.
        ids = np.frombuffer(turn.ids, dtype=np.uint32) if isinstance(turn.ids, array) else turn.ids
        body = {
            "rid": rid,
            "input_ids": ids,
            "sampling_params": parameters,
            "return_logprob": True,
            "lora_path": turn.adapter,
            "stream": False,
        }
        return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)

    async def _post(self, url: str, body: bytes) -> tuple[int, bytes]:
        assert self._session is not None, "use `async with HttpPolicy(...)`"
        # Reading to the end releases the connection, and a read that fails closes it: no `async with` needed.
        response = await self._session.post(_generate(url), data=body)
        return response.status, await response.read()

    def _read(self, server: Server, turn: Turn, status: int, content: bytes) -> dict[str, Any]:
        """The reply as an object with a finish reason.

        Raises RetryError for what a restart or a hiccup explains, PolicyError for a request that is wrong."""
        if status == 400:
            if turn.adapter is not None and turn.adapter.encode() in content:
                # The adapter was loaded there before this turn began: the server restarted without it.
                self._servers.suspect(server)
                raise RetryError(f"HTTP 400: {excerpt(content)}")
            raise PolicyError(f"{server.url} refuses {turn.id}: {excerpt(content)}")
        if status != 200:
            raise RetryError(f"HTTP {status}: {excerpt(content)}")
        try:
            reply: dict[str, Any] = orjson.loads(content)
            if reply["meta_info"]["finish_reason"]["type"] not in ("stop", "length", "abort"):
                raise RetryError(f"unknown finish reason: {excerpt(content)}")
        except (orjson.JSONDecodeError, KeyError, TypeError, IndexError) as error:
            raise RetryError(f"not a /generate reply: {excerpt(content)}") from error
        return reply

    def _completion(self, url: str, turn: Turn, rid: str, reply: dict[str, Any]) -> Completion:
        """Believe a reply whose parts agree.

        Raises PolicyError that names the server otherwise: such a server would poison the training."""
        meta = reply["meta_info"]
        if meta.get("id", rid) != rid:
            raise PolicyError(f"{url} answered {turn.id} with the reply to {meta['id']!r}")
        adapter = meta.get("lora_path", turn.adapter)
        if adapter != turn.adapter:
            raise PolicyError(f"{url} sampled {turn.id} with adapter {adapter!r}, not with {turn.adapter!r}")
        try:
            ids = array("I", reply["output_ids"])
            triples = meta["output_token_logprobs"]
            logprobs = array("f", [triple[0] for triple in triples])
            agree = [triple[1] for triple in triples] == reply["output_ids"]
            agree = agree and meta.get("completion_tokens", len(ids)) == len(ids) and math.isfinite(sum(logprobs))
        except (KeyError, TypeError, IndexError, ValueError, OverflowError) as error:
            raise PolicyError(f"{url}: the reply to {turn.id} lacks ids or log-probabilities: {error!r}") from error
        if not ids or not agree or max(ids) >= self._chat.vocab_size:
            raise PolicyError(
                f"{url}: the reply to {turn.id} is inconsistent: {len(ids)} ids, {len(logprobs)} log-probabilities, "
                f"completion_tokens {meta.get('completion_tokens')!r}, largest id {max(ids, default=-1)}"
            )
        stop: Literal["stop", "length"] = meta["finish_reason"]["type"]
        cached = meta.get("cached_tokens")
        return Completion(
            text=self._chat.decode(ids),
            ids=ids,
            logprobs=logprobs,
            adapter=adapter,
            server=url,
            stop=stop,
            cached_tokens=cached if isinstance(cached, int) else 0,  # a figure for the metrics: worth no episode
        )


@lru_cache
def _generate(url: str) -> URL:
    return URL(url) / "generate"
