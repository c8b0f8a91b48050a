"""What the embedded server does beyond SGLang's contract, which tests/conformance asks of both."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator

import aiohttp
import anyio
import psutil
import pytest

from tests.conformance.calls import client, generate, get, load_of, post, refusal, until_running
from tests.conformance.servers import CONTEXT, ROOT, RUNNING, SLOTS, Subject, embedded, make_files
from tests.parts.children import python
from tests.parts.embedded_models import make_model
from tests.parts.waiting import until


@pytest.fixture(scope="module")
def running(tmp_path_factory) -> Iterator[Subject]:
    """One server for the module; adapter `first` is loaded from the command line."""
    files = make_files(tmp_path_factory.mktemp("server"))
    with embedded(files, "--lora-paths", f"first={files.adapters / 'v00001'}", "--max-queued", "600") as subject:
        yield subject


@pytest.fixture
async def http(running) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of that server."""
    async with client(running.url) as session:
        yield session


async def test_what_is_not_built_is_refused(http):
    """400 with a message that names the problem, where SGLang would do something else; nothing reaches the model."""
    assert "frequency_penalty" in await refusal(http, sampling_params={"frequency_penalty": 0.5})
    assert "top_logprobs_num" in await refusal(http, top_logprobs_num=5)
    assert "unheard_of" in await refusal(http, unheard_of=1)
    assert "n is not supported" in await refusal(http, sampling_params={"n": 4})
    assert "empty" in await refusal(http, input_ids=[])
    assert "between 0 and 299" in await refusal(http, input_ids=[300])
    assert "input_ids" in await refusal(http, input_ids=None)
    assert "lora_path (1)" in await refusal(http, input_ids=[[1], [2]], lora_path=["first"])
    assert "single prompt" in await refusal(http, input_ids=[[1], [2]], stream=True)
    async with http.post("/generate", data=b"{not json") as response:
        assert (await response.json())["object"] == "error"
    defaults = {"n": 1, "repetition_penalty": 1.0, "stop": None, "temperature": None}
    await generate(http, [1], defaults, top_logprobs_num=0)


async def test_fields_without_influence_pass(http):
    """What SGLang takes and what changes neither tokens nor the reply here is accepted, whatever its value."""
    labels = {"routing_key": "r", "conversation_id": "c", "session_id": "s", "custom_labels": {"a": "b"}}
    fields = {"priority": 3, "extra_key": "x", "cache_salt": "y", "log_metrics": False, "no_logs": True, **labels}
    sampling = {"temperature": 0, "sampling_seed": 7, "custom_params": {"k": 1}, "stream_interval": 4}
    plain = await generate(http, [21] * 9, {"temperature": 0})
    assert (await generate(http, [21] * 9, sampling, **fields))["output_ids"] == plain["output_ids"]
    for field, value in (("regex", "a+"), ("n", 2), ("presence_penalty", 1), ("watermark", True), ("priority", 1)):
        assert field in await refusal(http, sampling_params={field: value})
    for field in ("return_prompt_token_ids", "return_hidden_states", "return_sampling_mask"):
        assert field in await refusal(http, **{field: True})


async def test_a_client_that_goes_away_frees_its_place(http):
    """Closing the connection aborts the request: nothing is running soon after."""
    async with anyio.create_task_group() as leaving:
        leaving.start_soon(generate, http, [5] * 5, {"max_new_tokens": CONTEXT - 9})
        await until_running(http, 1)
        leaving.cancel_scope.cancel()
    await until_running(http, 0)


async def test_an_unload_that_its_client_gives_up_leaves_nothing_behind(running, http):
    """The adapter's memory is free when its last user has ended, and another can be loaded then."""
    path = str(running.files.adapters / "v00002")
    await post(http, "/load_lora_adapter", lora_name="leaving", lora_path=path)
    async with anyio.create_task_group() as tg:
        tg.start_soon(lambda: generate(http, [6] * 5, {"max_new_tokens": CONTEXT - 9}, lora_path="leaving", rid="user"))
        await until_running(http, 1)
        async with anyio.create_task_group() as leaving:
            leaving.start_soon(lambda: post(http, "/unload_lora_adapter", lora_name="leaving"))
            await until(lambda: is_gone(http, "leaving"))
            leaving.cancel_scope.cancel()
        assert (await load_of(http))["lora"]["slots_used"] == 2
        await post(http, "/abort_request", rid="user")
    await until_running(http, 0)
    assert (await load_of(http))["lora"]["slots_used"] == 1
    assert (await post(http, "/load_lora_adapter", lora_name="leaving", lora_path=path))[0] == 200
    assert (await post(http, "/unload_lora_adapter", lora_name="leaving"))[0] == 200


async def is_gone(http: aiohttp.ClientSession, name: str) -> bool:
    """Whether no new request can ask for an adapter: it is unloaded, or its unload waits for those in flight."""
    return name not in [card["id"] for card in (await get(http, "/v1/models"))["data"]]


@pytest.mark.parametrize("path", ["../outside", "/etc"])
async def test_adapters_outside_the_root_are_refused(running, http, path):
    """400 that names the root."""
    path = str(running.files.adapters / path)
    status, reply = await post(http, "/load_lora_adapter", lora_name="bad", lora_path=path)
    assert (status, reply["success"]) == (400, False)
    assert "adapter root" in reply["error_message"]


async def test_full_slots_name_their_option(running, http):
    """One more than fit is refused by the name of the flag."""
    replies = []
    for version in range(2, SLOTS + 2):
        path = str(running.files.adapters / f"v{version:05d}")
        replies.append((await post(http, "/load_lora_adapter", lora_name=f"more-{version}", lora_path=path))[1])
    for version in range(2, SLOTS + 1):
        assert (await post(http, "/unload_lora_adapter", lora_name=f"more-{version}"))[0] == 200
    assert [reply["success"] for reply in replies] == [True] * (SLOTS - 1) + [False]
    assert "--max-loras" in replies[-1]["error_message"]


async def test_information_routes(running, http):
    """Under both of their names; the cache is flushed where nothing runs."""
    for path in ("/model_info", "/get_model_info"):
        assert (await get(http, path))["model_path"] == str(running.files.model)
    for path in ("/server_info", "/get_server_info"):
        info = await get(http, path)
        assert info["max_running_requests"] == RUNNING
        assert info["internal_states"][0]["num_running_reqs"] == 0
    assert (await load_of(http))["lora"] == {"slots_used": 1, "slots_total": SLOTS}
    async with http.get("/flush_cache") as response:
        assert response.status == 200


async def test_five_hundred_requests_at_once(http):
    """More than run together, over the base and an adapter: all end in full, beyond the queue limit is a 503."""
    statuses = []

    async def one(i: int) -> None:
        sampling = {"max_new_tokens": 10, "ignore_eos": True}
        ids = [i % 250, i // 250, 9]
        adapter = "first" if i % 2 else None
        status, reply = await post(http, "/generate", input_ids=ids, sampling_params=sampling, lora_path=adapter)
        statuses.append(status)
        assert status == 200, reply
        assert len(reply["output_ids"]) == 10

    async with anyio.create_task_group() as tg:
        for i in range(500):
            tg.start_soon(one, i)
    assert statuses == [200] * 500
    assert "queue is full" in await refusal(http, 503, input_ids=[[1]] * 601)


def test_the_server_ends_with_its_parent(tmp_path):
    """Killed with SIGKILL, the parent leaves no server behind; what a draining engine still asks for is answered."""
    model = make_model(tmp_path / "model")
    code = (
        "import os, subprocess, sys, time;"
        "subprocess.Popen([*sys.argv[1:], '--parent-pid', str(os.getpid())]); time.sleep(60)"
    )
    command = [sys.executable, "-m", "engine.embedded", "--model", str(model)]
    with python("-c", code, *command, stdout=subprocess.PIPE, cwd=ROOT) as parent:
        ready = json.loads(parent.stdout.readline())
        server, begun_s = psutil.Process(ready["pid"]), time.monotonic()
        parent.kill()
        body = {"input_ids": [1, 2, 3], "sampling_params": {"max_new_tokens": 200, "ignore_eos": True}}
        asked = urllib.request.Request(ready["url"] + "/generate", json.dumps(body).encode(), method="POST")
        # Asked without a pause for longer than it takes to notice.
        while time.monotonic() < begun_s + 1.5:
            with urllib.request.urlopen(asked, timeout=15) as answer:
                assert len(json.loads(answer.read())["output_ids"]) == 200
        assert server.wait(timeout=15) is not None or not server.is_running()


def test_a_model_that_is_not_served_ends_the_start_with_one_sentence(tmp_path):
    """Exit status 2, the reason on stderr, no traceback."""
    (tmp_path / "config.json").write_text('{"architectures": ["MambaForCausalLM"]}')
    command = [sys.executable, "-m", "engine.embedded", "--model", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert "MambaForCausalLM cannot be served here; these can: LlamaForCausalLM, " in done.stderr
    assert "Traceback" not in done.stderr
