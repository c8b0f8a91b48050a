"""One endpoint of a run: its queue, its limits, its second attempts and its account.

call ─▶ batcher (concurrency) ─▶ rate limit ─▶ one request ─▶ answers
                                     ▲               │ no answer, 5xx, 429: again, later and later, or when it says so
                                     └───────────────┘ refused: a batch is taken apart, so that it harms nobody else

Attempts are counted while others get answers. An endpoint that is away, restarted say, is waited for.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count

import aiohttp
import anyio
from aiolimiter import AsyncLimiter

from engine.config.endpoints import EndpointSection
from engine.http.attempts import backoff_s
from engine.llm.batching import Batcher, EndpointError, Queue
from engine.llm.question import ChatPrompt, Completed
from engine.llm.transport import AttemptError, EndpointRefusedError, OpenAiTransport, SglangTransport, Transport

_BACKOFF_S, _LONGEST_BACKOFF_S = 0.5, 15.0
_MINUTE_S = 60
_AWAY_REQUESTS = 8
"""Requests in a row that fail when an endpoint is away; fewer may be bad luck."""
_AWAY_S = 300.0
"""How long an endpoint that used to answer may be silent before calls are given up after their attempts again."""


@dataclass(slots=True, kw_only=True)
class Account:
    """What an endpoint was asked, what it took, and what went wrong, since the start.

    Every request is answered, a fault, abandoned, or still on its way."""

    calls: int = 0
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    retries: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    """Requests that failed, by kind: timeout, reset, busy, error, garbage; refused ones are not tried again."""
    failed: int = 0
    """Calls without an answer after all attempts."""
    abandoned: int = 0
    """Requests given up on the way, because nobody waited for the answer any more."""


class Endpoint:
    """A language model behind a URL; opened by `open_endpoint`."""

    def __init__(self, name: str, settings: EndpointSection, transport: Transport, http: aiohttp.ClientSession) -> None:
        self.name, self.settings, self.account = name, settings, Account()
        self.queue = Queue(settings.batch_size, settings.batch_wait_s if settings.batch_size > 1 else 0.0)
        self._transport, self._http = transport, http
        self._silent, self._heard_s = 0, -math.inf
        """Requests that failed since the last answer, and when that was."""
        limit = settings.requests_per_minute
        # One at a time at an even pace: a burst at the start is what a limit of the minute punishes.
        self._rate = AsyncLimiter(1, _MINUTE_S / limit) if limit else None
        self._proving = anyio.Lock()

    async def send(self, prompts: Sequence[ChatPrompt]) -> Sequence[Completed | EndpointError]:
        """One batch, with all the attempts that it takes.

        Raises EndpointError if the endpoint does not answer."""
        for attempt in count():
            try:
                return await self._attempt(prompts)
            except AttemptError as error:
                self.account.faults[error.kind] += 1
                self._silent += 1
                if attempt >= self.settings.retries and not self._away(attempt + 1):
                    self.account.failed += len(prompts)
                    raise EndpointError(f"endpoint {self.name}: {attempt + 1} attempts failed: {error}") from error
                self.account.retries += 1
                await anyio.sleep(max(error.after_s, backoff_s(attempt, _BACKOFF_S, _LONGEST_BACKOFF_S)))
            except EndpointRefusedError as error:
                self.account.faults["refused"] += 1
                self._heard()
                if len(prompts) > 1:
                    return await self._one_by_one(prompts)
                self.account.failed += 1
                raise EndpointError(f"endpoint {self.name} refuses the request: {error}") from error
        raise AssertionError("the last attempt returns or raises")

    def _heard(self) -> None:
        """The endpoint is there."""
        self._silent, self._heard_s = 0, time.monotonic()

    def _away(self, attempts: int) -> bool:
        """Whether nobody gets an answer any more: not a call in all its attempts, and no other one.

        That says nothing of the call, and is worth waiting for; who asked sets the limit (limits.turn_s)."""
        nobody = self._silent > max(attempts, _AWAY_REQUESTS)
        return nobody and time.monotonic() - self._heard_s < _AWAY_S

    async def _attempt(self, prompts: Sequence[ChatPrompt]) -> Sequence[Completed]:
        if not self._transport.proved:
            # One finds out how the server takes requests, or every first call would be refused in every other way.
            # Where that one fails, the next in line tries.
            async with self._proving:
                if not self._transport.proved:
                    return await self._request(prompts)
        return await self._request(prompts)

    async def _request(self, prompts: Sequence[ChatPrompt]) -> Sequence[Completed]:
        if self._rate is not None:
            await self._rate.acquire()
        self.account.requests += 1
        try:
            answers = await self._transport.send(self._http, prompts)
        except anyio.get_cancelled_exc_class():
            self.account.abandoned += 1
            raise
        self._heard()
        self.account.calls += len(answers)
        self.account.prompt_tokens += sum(answer.prompt_tokens for answer in answers)
        self.account.completion_tokens += sum(answer.completion_tokens for answer in answers)
        return answers

    async def _one_by_one(self, prompts: Sequence[ChatPrompt]) -> list[Completed | EndpointError]:
        """The answers of a batch in which one prompt or another is refused."""
        answers: list[Completed | EndpointError] = []
        for prompt in prompts:
            try:
                answers += await self.send([prompt])
            except EndpointError as error:
                answers.append(error)
        return answers


@dataclass(frozen=True, slots=True, kw_only=True)
class Reachable:
    """An endpoint that takes calls."""

    endpoint: Endpoint
    batcher: Batcher


@asynccontextmanager
async def open_endpoint(name: str, settings: EndpointSection, url: str, key: str | None) -> AsyncIterator[Reachable]:
    """The endpoint at `url`, with API key `key` if it wants one, until the end of the block.

    Raises ConfigError if a model whose chat template is needed has none."""
    kind = SglangTransport if settings.api == "sglang" else OpenAiTransport
    transport: Transport = await anyio.to_thread.run_sync(kind, settings, url)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=settings.concurrency),
        timeout=aiohttp.ClientTimeout(total=settings.timeout_s),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"Authorization": f"Bearer {key}"} if key else None,
    ) as http:
        endpoint = Endpoint(name, settings, transport, http)
        async with Batcher(endpoint.queue, endpoint.send, concurrency=settings.concurrency) as batcher:
            yield Reachable(endpoint=endpoint, batcher=batcher)
