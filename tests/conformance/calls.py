"""Requests to a server, and what every reply is checked by."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import orjson
import pytest
from anyio.to_thread import run_sync

from tests.conformance.servers import Files
from tests.parts.embedded_models import reference_logprobs
from tests.parts.waiting import until

LONG = {"max_new_tokens": 1500}
GREEDY = {"temperature": 0, "max_new_tokens": 32}


@asynccontextmanager
async def client(url: str) -> AsyncIterator[aiohttp.ClientSession]:
    """A client without a connection limit."""
    headers = {"Content-Type": "application/json"}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(url, connector=connector, headers=headers) as session:
        yield session


async def post(http: aiohttp.ClientSession, path: str, **body: object) -> tuple[int, Any]:
    """Status and decoded body."""
    async with http.post(path, data=orjson.dumps(body)) as response:
        raw = await response.read()
        return response.status, orjson.loads(raw) if raw else None


async def get(http: aiohttp.ClientSession, path: str) -> Any:
    """The body of an information route."""
    async with http.get(path) as response:
        assert response.status == 200
        return orjson.loads(await response.read())


async def generate(http: aiohttp.ClientSession, ids: object, /, sampling: dict[str, Any] | None = None, **body) -> Any:
    """A successful `/generate`."""
    sampling = {"max_new_tokens": 8, "ignore_eos": True} | (sampling or {})
    status, reply = await post(http, "/generate", input_ids=ids, sampling_params=sampling, **body)
    assert status == 200, reply
    return reply


async def refusal(http: aiohttp.ClientSession, expected: int = 400, /, **body: object) -> str:
    """What a refused `/generate` says; the shapes differ even within SGLang, and the client looks for words only."""
    status, reply = await post(http, "/generate", **({"input_ids": [1, 2]} | body))
    assert status == expected, reply
    return orjson.dumps(reply).decode()


async def load_of(http: aiohttp.ClientSession) -> dict[str, Any]:
    """The one rank's entry of /v1/loads."""
    return (await get(http, "/v1/loads"))["loads"][0]


async def until_running(http: aiohttp.ClientSession, wanted: int) -> None:
    """Wait until this many requests are decoding."""

    async def running() -> bool:
        return (await load_of(http))["num_running_reqs"] == wanted

    await until(running)


def adapter_path(files: Files, version: int | str) -> str:
    """The directory of an adapter."""
    return str(files.adapters / (version if isinstance(version, str) else f"v{version:05d}"))


@asynccontextmanager
async def loaded(http: aiohttp.ClientSession, files: Files, name: str, version: int) -> AsyncIterator[str]:
    """An adapter, loaded for the time of the block."""
    status, reply = await post(http, "/load_lora_adapter", lora_name=name, lora_path=adapter_path(files, version))
    assert (status, reply["success"], reply["error_message"]) == (200, True, ""), reply
    assert reply["loaded_adapters"][name] == adapter_path(files, version)
    try:
        yield name
    finally:
        await post(http, "/unload_lora_adapter", lora_name=name)


async def assert_sampled_by(files: Files, version: int | None, reply: Any, prompt: list[int], temperature=1.0) -> None:
    """Every log-probability of a reply is within 1e-4 of what transformers (and peft) give the same tokens."""
    path = None if version is None else files.adapters / f"v{version:05d}"
    ids = prompt + reply["output_ids"]
    expected = await run_sync(reference_logprobs, files.model, ids, path, temperature)
    triples = reply["meta_info"]["output_token_logprobs"]
    assert [triple[0] for triple in triples] == pytest.approx(expected[len(prompt) - 1 :], abs=1e-4)
    assert [triple[1:] for triple in triples] == [[id_, None] for id_ in reply["output_ids"]]


async def prompt_that_gives(http: aiohttp.ClientSession, token: int) -> tuple[list[int], list[int]]:
    """A prompt, and its greedy continuation in which `token` comes for the first time behind at least two others."""
    prompts = [[i % 94, 40 + i % 50, 3 + i % 7] for i in range(96)]
    for prompt, reply in zip(prompts, await generate(http, prompts, GREEDY), strict=True):
        output = reply["output_ids"]
        if token in output[2:-2] and token not in output[:2]:
            return prompt, output
    raise AssertionError(f"no prompt gives token {token}")
