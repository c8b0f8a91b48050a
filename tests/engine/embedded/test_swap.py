"""Hot swaps under load: what the engine relies on when it publishes a version every few seconds."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import anyio
import orjson
import pytest

from tests.parts.children import python
from tests.parts.embedded_models import make_adapter, make_model
from tests.parts.places import ROOT

PROMPTS = [[i % 250, (7 * i) % 250, *range(60, 60 + i % 40)] for i in range(32)]
CLIENTS, VERSIONS = 256, 8


async def ask(http: aiohttp.ClientSession, number: int, adapter: str) -> list[int]:
    """The greedy output for one of the prompts."""
    sampling = {"temperature": 0, "max_new_tokens": 24, "ignore_eos": True}
    body = {"input_ids": PROMPTS[number], "sampling_params": sampling, "lora_path": adapter}
    async with http.post("/generate", data=orjson.dumps(body)) as response:
        reply = orjson.loads(await response.read())
        assert response.status == 200, reply
        assert reply["meta_info"]["finish_reason"]["type"] == "length"
        return reply["output_ids"]


async def control(http: aiohttp.ClientSession, path: str, **body: object) -> None:
    """A load or unload that must succeed."""
    async with http.post(path, data=orjson.dumps(body)) as response:
        assert response.status == 200, await response.text()


@pytest.fixture
def server(tmp_path) -> Iterator[tuple[str, Path]]:
    """A server's url, and the directory with its adapters."""
    model = make_model(tmp_path / "model")
    for v in range(VERSIONS):
        make_adapter(tmp_path / "adapters" / f"v{v}", model, seed=v)
    flags = ["--model", str(model), "--adapter-root", str(tmp_path / "adapters"), "--max-loras", "3"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with python("-m", "engine.embedded", *flags, stdout=subprocess.PIPE, cwd=ROOT, env=environment) as process:
        yield json.loads(process.stdout.readline())["url"], tmp_path / "adapters"


@pytest.mark.slow
async def test_swaps_under_load_mix_nothing_and_lose_nothing(server):
    """256 clients, a new version loaded and the oldest unloaded again and again: every reply is the greedy output of
    exactly the version it asked for, none is aborted, and the memory of unloaded versions is free again."""
    url, adapters = server
    async with aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=0)) as http:
        answered = await swap_under_load(http, adapters)
        async with http.get("/v1/loads") as response:
            load = (await response.json())["loads"][0]
    assert answered > 2 * CLIENTS
    assert load["lora"]["slots_used"] == 1
    assert load["num_running_reqs"] == load["num_waiting_reqs"] == 0


async def swap_under_load(http: aiohttp.ClientSession, adapters: Path) -> int:
    """Run the clients through all versions; returns the number of replies checked."""
    expected: dict[str, list[list[int]]] = {}
    for v in range(VERSIONS):
        await control(http, "/load_lora_adapter", lora_name=f"quiet{v}", lora_path=str(adapters / f"v{v}"))
        expected[f"v{v}"] = [await ask(http, number, f"quiet{v}") for number in range(len(PROMPTS))]
        await control(http, "/unload_lora_adapter", lora_name=f"quiet{v}")
    await control(http, "/load_lora_adapter", lora_name="v0", lora_path=str(adapters / "v0"))
    current, done, answered = "v0", False, 0

    async def client(i: int) -> None:
        nonlocal answered
        while not done:
            version = current
            assert await ask(http, i % len(PROMPTS), version) == expected[version][i % len(PROMPTS)]
            answered += 1

    async with anyio.create_task_group() as tg:
        for i in range(CLIENTS):
            tg.start_soon(client, i)
        for v in range(1, VERSIONS):
            await anyio.sleep(0.5)
            await control(http, "/load_lora_adapter", lora_name=f"v{v}", lora_path=str(adapters / f"v{v}"))
            current, old = f"v{v}", current
            await anyio.sleep(0.2)  # clients that read the old name have sent their request by now
            await control(http, "/unload_lora_adapter", lora_name=old)
        done = True
    return answered
