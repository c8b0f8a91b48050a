"""One HTTP request to a language model: the OpenAI route and SGLang's native one, and what each can go wrong with.

Both are plain aiohttp, one connection pool an endpoint: a call costs the engine 0.68 ms of CPU on the OpenAI route, and
3.42 ms through `AsyncOpenAI` (`python -m bench endpoints`, two cores).
"""

from __future__ import annotations

import email.utils
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol, get_args

import aiohttp
import orjson

from engine.chat.template import ChatTemplate
from engine.config.endpoints import EndpointSection, Mode
from engine.http.attempts import excerpt
from engine.llm.question import ChatPrompt, Completed

_LADDER: tuple[Mode, ...] = get_args(Mode)
_ASKED = "Reply with one JSON object and nothing else. It must fit this JSON Schema:\n"
_LONGEST_WAIT_S = 60.0


class AttemptError(Exception):
    """An attempt failed in a way that another may not; `kind` is what it is counted as."""

    def __init__(self, kind: str, reason: str, after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.kind = kind
        self.after_s = after_s
        """How long the server asks to be left alone."""


class EndpointRefusedError(Exception):
    """The server says that the request is wrong; another attempt would be too."""


class Transport(Protocol):
    """How an endpoint is asked."""

    @property
    def proved(self) -> bool:
        """Whether it is known in which way the server takes requests; the first answer says it."""
        ...

    async def send(self, session: aiohttp.ClientSession, prompts: Sequence[ChatPrompt]) -> Sequence[Completed]:
        """One request with these prompts; one answer to each.

        Raises AttemptError or RefusedError."""
        ...


class OpenAiTransport:
    """`POST /v1/chat/completions`, one prompt a request.

    JSON is asked of the server in the strictest way that it accepts: by schema in OpenAI's way, or in llama.cpp's, as
    some object, or in words alone."""

    def __init__(self, endpoint: EndpointSection, url: str) -> None:
        self._url, self._endpoint = f"{url.rstrip('/')}/v1/chat/completions", endpoint
        self._modes: tuple[Mode, ...] = _LADDER if endpoint.structured == "auto" else (endpoint.structured,)
        self.proved = len(self._modes) == 1

    async def send(self, session: aiohttp.ClientSession, prompts: Sequence[ChatPrompt]) -> Sequence[Completed]:
        """See Transport; there is one prompt."""
        [prompt] = prompts
        for position, mode in enumerate(self._modes):
            try:
                reply = await _post(session, self._url, self._body(prompt, mode))
            except EndpointRefusedError:
                # It may be the mode, or this very prompt: what is refused in every mode is the prompt.
                if position + 1 == len(self._modes):
                    raise
                continue
            if not self.proved:
                self._modes, self.proved = self._modes[position:], True
            return [_completed(reply)]
        raise AssertionError("an endpoint has a mode")

    def _body(self, prompt: ChatPrompt, mode: Mode) -> dict[str, Any]:
        messages: list[Any] = list(prompt.messages)
        body = {
            "model": self._endpoint.model,
            "temperature": prompt.temperature,
            "max_tokens": self._endpoint.max_tokens,
            "messages": messages,
        }
        if mode == "json_schema":
            named = {"name": "reply", "schema": prompt.schema, "strict": True}
            return body | {"response_format": {"type": "json_schema", "json_schema": named}}
        asked = _ASKED + orjson.dumps(prompt.schema).decode()
        messages[0] = {**messages[0], "content": f"{messages[0]['content']}\n\n{asked}"}
        if mode == "prompt":
            return body
        schema = {"schema": prompt.schema} if mode == "json_object_schema" else {}
        return body | {"response_format": {"type": "json_object", **schema}}


class SglangTransport:
    """SGLang's `POST /generate`: a batch of prompts a request, each held to its JSON Schema while it is sampled."""

    proved = True

    def __init__(self, endpoint: EndpointSection, url: str) -> None:
        self._url, self._endpoint = f"{url.rstrip('/')}/generate", endpoint
        self._template = ChatTemplate.load(Path(endpoint.model))

    async def send(self, session: aiohttp.ClientSession, prompts: Sequence[ChatPrompt]) -> Sequence[Completed]:
        """See Transport."""
        body = {
            "text": [self._template.render(prompt.messages, []) for prompt in prompts],
            "sampling_params": [self._parameters(prompt) for prompt in prompts],
            "stream": False,
        }
        replies = await _post(session, self._url, body)
        if not isinstance(replies, list) or len(replies) != len(prompts):
            raise AttemptError("garbage", f"{self._url}: not one reply to each of {len(prompts)} prompts")
        return [_generated(reply) for reply in replies]

    def _parameters(self, prompt: ChatPrompt) -> dict[str, Any]:
        return {
            "max_new_tokens": self._endpoint.max_tokens,
            "temperature": prompt.temperature,
            "json_schema": orjson.dumps(prompt.schema).decode(),
        }


async def _post(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> Any:
    """The JSON that the server answers with.

    Raises AttemptError for what a moment may mend, RefusedError for what it will not."""
    try:
        async with session.post(url, data=orjson.dumps(body), headers={"Content-Type": "application/json"}) as response:
            status, content, headers = response.status, await response.read(), response.headers
    except TimeoutError as error:
        raise AttemptError("timeout", f"{url}: no answer in time") from error
    except (aiohttp.ClientError, OSError) as error:
        raise AttemptError("reset", f"{url}: {type(error).__name__}: {error}") from error
    if status != 200:
        _failed(url, status, content, headers.get("Retry-After", ""))
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise AttemptError("garbage", f"{url}: not JSON: {excerpt(content)}") from error


def _failed(url: str, status: int, content: bytes, retry_after: str) -> NoReturn:
    reason = f"{url}: HTTP {status}: {excerpt(content)}"
    if status in (429, 503):
        raise AttemptError("busy", reason, retry_after_s(retry_after, time.time()))
    # llama-cpp-python says with a 500 that it does not know a format: that is no failure, and no moment mends it.
    if (status >= 500 and b"response_format" not in content) or status == 408:
        raise AttemptError("error", reason)
    raise EndpointRefusedError(reason)


def retry_after_s(value: str, now: float) -> float:
    """Seconds that a Retry-After header asks for, at most a minute; 0 if it says nothing usable (RFC 9110, 10.2.3)."""
    try:
        seconds = float(value)
    except ValueError:
        parsed = email.utils.parsedate_tz(value)
        seconds = email.utils.mktime_tz(parsed) - now if parsed else 0.0
    return 0.0 if math.isnan(seconds) else min(max(seconds, 0.0), _LONGEST_WAIT_S)


def _completed(reply: Any) -> Completed:
    """The text of a chat completion.

    Raises AttemptError if it is none."""
    try:
        usage = reply.get("usage") or {}
        text = reply["choices"][0]["message"]["content"] or ""
        return Completed(str(text), int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0))
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise AttemptError("garbage", f"not a chat completion: {excerpt(orjson.dumps(reply))}") from error


def _generated(reply: Any) -> Completed:
    """The text of one reply of /generate.

    Raises AttemptError if it is none, or was aborted."""
    try:
        meta = reply["meta_info"]
        aborted = meta["finish_reason"]["type"] == "abort"
        found = Completed(str(reply["text"]), int(meta["prompt_tokens"]), int(meta["completion_tokens"]))
    except (KeyError, TypeError, ValueError) as error:
        raise AttemptError("garbage", f"not a /generate reply: {excerpt(orjson.dumps(reply))}") from error
    if aborted:
        raise AttemptError("error", f"the server aborted the request: {meta['finish_reason'].get('message')}")
    return found
