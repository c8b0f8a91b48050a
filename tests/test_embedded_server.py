"""The HTTP contract, over a real server process."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import anyio
import orjson
import psutil
import pytest

from tests.embedded_models import make_adapter, make_model, reference_logprobs

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A server process and where its files are."""

    url: str
    model: Path
    adapters: Path
    process: subprocess.Popen[bytes]


def start(model: Path, *arguments: str) -> tuple[subprocess.Popen[bytes], dict[str, object]]:
    """Start a server as a user would; returns once it printed its line."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "engine.embedded", "--model", str(model), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, env=environment)
    assert process.stdout is not None
    return process, json.loads(process.stdout.readline())


@pytest.fixture(scope="module")
def running(tmp_path_factory) -> Iterator[Running]:
    """One server for the module: adapter `first` loaded from the command line, `second` and `third` on disk."""
    root = tmp_path_factory.mktemp("server")
    model = make_model(root / "model")
    for seed, name in enumerate(("first", "second", "third"), 1):
        make_adapter(root / "adapters" / name, model, seed=seed)
    make_adapter(root / "adapters" / "wide", model, seed=4, rank=32)
    make_adapter(root / "outside", model, seed=5)
    first = f"first={root / 'adapters' / 'first'}"
    flags = (
        "--adapter-root",
        str(root / "adapters"),
        "--lora-paths",
        first,
        "--max-loras",
        "3",
        "--max-lora-rank",
        "8",
    )
    process, line = start(model, *flags, "--max-queued", "600", "--served-name", "tiny")
    with process:
        yield Running(url=str(line["url"]), model=model, adapters=root / "adapters", process=process)
        process.terminate()
    assert process.returncode == 0


@pytest.fixture
async def http(running) -> AsyncIterator[aiohttp.ClientSession]:
    """A client without a connection limit."""
    async with aiohttp.ClientSession(running.url, connector=aiohttp.TCPConnector(limit=0)) as session:
        yield session


async def post(http: aiohttp.ClientSession, path: str, **body: object) -> tuple[int, object]:
    """Status and decoded body."""
    async with http.post(path, data=orjson.dumps(body)) as response:
        raw = await response.read()
        return response.status, orjson.loads(raw) if raw else None


async def generate(http: aiohttp.ClientSession, ids: object, /, sampling: dict[str, object] | None = None, **body):
    """A successful `/generate`."""
    sampling = {"max_new_tokens": 8, "ignore_eos": True} | (sampling or {})
    status, reply = await post(http, "/generate", input_ids=ids, sampling_params=sampling, **body)
    assert status == 200, reply
    return reply


async def message(http: aiohttp.ClientSession, expected: int = 400, /, **body: object) -> str:
    """The error message of a refused `/generate`."""
    status, reply = await post(http, "/generate", **({"input_ids": [1, 2]} | body))
    assert status == expected, reply
    return reply["error"]["message"] if "error" in reply else reply["message"]


async def loads(http: aiohttp.ClientSession) -> dict[str, object]:
    """The one rank's entry of /v1/loads."""
    async with http.get("/v1/loads") as response:
        return (await response.json())["loads"][0]


async def until_running(http: aiohttp.ClientSession, wanted: int) -> None:
    """Wait until this many requests are decoding."""
    count = -1
    while count != wanted:
        await anyio.sleep(0.01)
        count = (await loads(http))["num_running_reqs"]


async def test_a_reply_has_sglangs_shape(http):
    """Ids, text and meta_info as in the contract; triples of (log-probability, id, null)."""
    reply = await generate(http, list(range(40, 60)), rid="shape", return_logprob=True)
    meta = reply["meta_info"]
    assert meta["id"] == "shape"
    assert meta["finish_reason"] == {"type": "length", "length": 8}
    assert (meta["prompt_tokens"], meta["completion_tokens"]) == (20, 8)
    assert [triple[1:] for triple in meta["output_token_logprobs"]] == [[id_, None] for id_ in reply["output_ids"]]
    assert meta["output_token_logprobs_length"] == 8
    assert isinstance(reply["text"], str)
    assert meta["input_token_logprobs"] == []


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("adapter", [None, "first"])
async def test_logprobs_agree_with_transformers(running, http, adapter, temperature):
    """Sampled over HTTP, scored by transformers (and peft): within 1e-4, at the temperature that sampled."""
    prompt = list(range(100, 140))
    sampling = {"max_new_tokens": 30, "temperature": temperature}
    body = {"return_logprob": True, "logprob_start_len": 0, "lora_path": adapter}
    reply = await generate(http, prompt, sampling, **body)
    path = running.adapters / adapter if adapter else None
    ids = prompt + reply["output_ids"]
    expected = await anyio.to_thread.run_sync(reference_logprobs, running.model, ids, path, temperature)
    given = [triple[0] for triple in reply["meta_info"]["output_token_logprobs"]]
    assert given == pytest.approx(expected[-30:], abs=1e-4)
    plain = await anyio.to_thread.run_sync(reference_logprobs, running.model, ids, path)
    asked = reply["meta_info"]["input_token_logprobs"]
    assert [triple[1] for triple in asked] == prompt
    assert asked[0][0] is None
    assert [triple[0] for triple in asked[1:]] == pytest.approx(plain[:39], abs=1e-4)


async def test_a_batch_answers_in_order(http):
    """A list of prompts, each with its adapter and rid; a text prompt works too."""
    prompts = [[7] * 9, [8] * 5, [9] * 3]
    replies = await generate(http, prompts, rid=["x", "y", "z"], lora_path=["first", None, None])
    assert [r["meta_info"]["id"] for r in replies] == ["x", "y", "z"]
    assert [r["meta_info"]["prompt_tokens"] for r in replies] == [9, 5, 3]
    assert [r["meta_info"]["lora_path"] for r in replies] == ["first", None, None]
    prefixed = await generate(http, prompts, rid="p")
    assert [r["meta_info"]["id"] for r in prefixed] == ["p_0", "p_1", "p_2"]
    _, reply = await post(http, "/generate", text="hello", sampling_params={"max_new_tokens": 2})
    assert reply["meta_info"]["prompt_tokens"] == 5


async def test_a_stream_is_cumulative_and_ends_with_done(http):
    """Every event contains the one before; the last one has the finish reason."""
    body = {"input_ids": [3] * 20, "sampling_params": {"max_new_tokens": 20, "ignore_eos": True}, "stream": True}
    async with http.post("/generate", data=orjson.dumps(body | {"return_logprob": True})) as response:
        assert response.content_type == "text/event-stream"
        lines = [line async for line in response.content if line.strip()]
    assert lines[-1] == b"data: [DONE]\n"
    events = [orjson.loads(line.removeprefix(b"data: ")) for line in lines[:-1]]
    for before, after in itertools.pairwise(events):
        assert after["output_ids"][: len(before["output_ids"])] == before["output_ids"]
    assert len(events[-1]["meta_info"]["output_token_logprobs"]) == 20
    assert events[-1]["meta_info"]["finish_reason"]["type"] == "length"
    assert len(events) > 1


async def test_stop_strings_and_tokens_are_cut_from_the_text(http):
    """What stopped the request is named, stays in the ids, and leaves the text unless it is to be kept."""
    greedy = {"temperature": 0, "max_new_tokens": 40}
    free = await generate(http, [70, 71, 72], greedy)
    text = free["text"]
    stop = next(text[i : i + 1] for i in range(5, len(text)) if text[i].isascii() and text[i] not in text[:5])
    stopped = await generate(http, [70, 71, 72], greedy | {"stop": [stop]})
    assert stopped["meta_info"]["finish_reason"] == {"type": "stop", "matched": stop}
    assert stopped["text"] == text[: text.index(stop)]
    kept = await generate(http, [70, 71, 72], greedy | {"stop": stop, "no_stop_trim": True})
    assert kept["text"].endswith(stop)
    token = free["output_ids"][6]
    by_id = {"ignore_eos": False, "stop_token_ids": [token]}
    stopped = await generate(http, [70, 71, 72], greedy | by_id)
    if 257 not in free["output_ids"][:7]:
        assert stopped["meta_info"]["finish_reason"] == {"type": "stop", "matched": token}
        assert stopped["output_ids"][-1] == token


async def test_turns_of_an_episode_are_cached(http):
    """The second prompt reuses all of the first request but its last token."""
    async with http.post("/flush_cache") as response:
        assert response.status == 200
    first = await generate(http, [11] * 50, {"temperature": 0})
    second = await generate(http, [11] * 50 + first["output_ids"] + [1, 2, 3], lora_path=None)
    assert first["meta_info"]["cached_tokens"] == 0
    assert second["meta_info"]["cached_tokens"] == 57
    other = await generate(http, [11] * 50, lora_path="first")
    assert other["meta_info"]["cached_tokens"] == 0


async def test_wrong_requests_are_refused(http):
    """400 with a message that names the problem; nothing of it reaches the model."""
    assert "foo" in await message(http, sampling_params={"foo": 1})
    assert "frequency_penalty" in await message(http, sampling_params={"frequency_penalty": 0.5})
    assert "temperature" in await message(http, sampling_params={"temperature": -1})
    assert "top_logprobs_num" in await message(http, top_logprobs_num=5)
    assert "unheard_of" in await message(http, unheard_of=1)
    assert "n is not supported" in await message(http, sampling_params={"n": 4})
    assert "context length" in await message(http, sampling_params={"max_new_tokens": 511})
    assert "longer than the model's context" in await message(http, input_ids=[1] * 512)
    assert "empty" in await message(http, input_ids=[])
    assert "between 0 and 299" in await message(http, input_ids=[300])
    assert "not loaded" in await message(http, lora_path="nobody")
    assert "input_ids" in await message(http, input_ids=None)
    assert "lora_path (1)" in await message(http, input_ids=[[1], [2]], lora_path=["first"])
    async with http.post("/generate", data=b"{not json") as response:
        assert response.status == 400
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
        assert field in await message(http, sampling_params={field: value})
    for field in ("return_prompt_token_ids", "return_hidden_states", "return_sampling_mask"):
        assert field in await message(http, **{field: True})


async def test_a_live_rid_is_refused_until_it_ends(http):
    """Twice at once is a duplicate; one after the other is fine."""
    async with anyio.create_task_group() as tg:
        tg.start_soon(generate, http, [1] * 5, {"max_new_tokens": 400})
        long = {"max_new_tokens": 400, "ignore_eos": True}
        tg.start_soon(lambda: post(http, "/generate", input_ids=[2] * 5, sampling_params=long, rid="twice"))
        await until_running(http, 2)
        assert "Duplicate request ID detected" in await message(http, rid="twice")
        await post(http, "/abort_request", rid="twice")
    assert "Duplicate request ID detected" in await message(http, input_ids=[[1], [2]], rid=["q", "q"])
    await generate(http, [1], rid="twice")
    await generate(http, [1], rid="twice")


async def test_abort_returns_what_there_is(http):
    """200 with type abort and partial output; a rid of which it is a prefix goes on; unknown ids are 200 too."""
    replies = {}

    async def run(rid: str, tokens: int) -> None:
        replies[rid] = await generate(http, [4] * 5, {"max_new_tokens": tokens}, rid=rid, return_logprob=True)

    async with anyio.create_task_group() as tg:
        tg.start_soon(run, "pf-1", 480)
        tg.start_soon(run, "pf-10", 150)
        await until_running(http, 2)
        assert (await post(http, "/abort_request", rid="pf-1"))[0] == 200
        assert (await post(http, "/abort_request", rid="unknown")) == (200, None)
    finish = replies["pf-1"]["meta_info"]["finish_reason"]
    assert finish == {"type": "abort", "message": "Aborted", "status_code": None, "err_type": None}
    assert len(replies["pf-1"]["output_ids"]) == len(replies["pf-1"]["meta_info"]["output_token_logprobs"]) < 480
    assert replies["pf-10"]["meta_info"]["finish_reason"]["type"] == "length"


async def test_a_client_that_goes_away_frees_its_place(http):
    """Closing the connection aborts the request: nothing is running soon after."""
    with anyio.move_on_after(0.3):
        await generate(http, [5] * 5, {"max_new_tokens": 500})
    with anyio.fail_after(5):
        await until_running(http, 0)


async def test_adapters_come_and_go_over_http(running, http):
    """Load, refuse the same name, refuse a fourth, unload, refuse an unknown: the JSON of the contract."""
    second, third = str(running.adapters / "second"), str(running.adapters / "third")
    status, reply = await post(http, "/load_lora_adapter", lora_name="v2", lora_path=second)
    assert (status, reply["success"], reply["error_message"]) == (200, True, "")
    assert reply["loaded_adapters"] == {"first": str(running.adapters / "first"), "v2": second}
    assert reply.keys() >= {"rid", "http_worker_ipc"}
    status, reply = await post(http, "/load_lora_adapter", lora_name="v2", lora_path=third)
    assert (status, reply["success"]) == (400, False)
    assert "already loaded" in reply["error_message"]
    assert (await post(http, "/load_lora_adapter", lora_name="v3", lora_path=third))[0] == 200
    status, reply = await post(http, "/load_lora_adapter", lora_name="v4", lora_path=third)
    assert status == 400
    assert "--max-loras" in reply["error_message"]
    async with http.get("/v1/models") as response:
        names = [row["id"] for row in (await response.json())["data"]]
    assert names == ["tiny", "first", "v2", "v3"]
    for name in ("v2", "v3"):
        assert (await post(http, "/unload_lora_adapter", lora_name=name))[0] == 200
    status, reply = await post(http, "/unload_lora_adapter", lora_name="v2")
    assert (status, reply["success"]) == (400, False)
    assert "does not exist" in reply["error_message"]
    assert "not loaded" in await message(http, lora_path="v2")


@pytest.mark.parametrize(
    ("path", "named"),
    [("../outside", "adapter root"), ("wide", "rank 32"), ("missing", "cannot be read"), ("/etc", "adapter root")],
)
async def test_bad_adapters_are_refused_over_http(running, http, path, named):
    """Outside the root, too large a rank, not there: 400 that says so, and the name stays free."""
    status, reply = await post(http, "/load_lora_adapter", lora_name="bad", lora_path=str(running.adapters / path))
    assert (status, reply["success"]) == (400, False)
    assert named in reply["error_message"]
    assert "bad" not in reply["loaded_adapters"]


async def test_unload_waits_for_requests_in_flight(running, http):
    """The name is gone at once, the reply comes when the last user ended, and that user kept its adapter."""
    path = str(running.adapters / "second")
    await post(http, "/load_lora_adapter", lora_name="leaving", lora_path=path)
    order, replies = [], []

    async def use() -> None:
        sampling = {"max_new_tokens": 300, "temperature": 0}
        replies.append(await generate(http, [6] * 5, sampling, rid="user", lora_path="leaving", return_logprob=True))
        order.append("user")

    async def unload() -> None:
        assert (await post(http, "/unload_lora_adapter", lora_name="leaving"))[0] == 200
        order.append("unload")

    async with anyio.create_task_group() as tg:
        tg.start_soon(use)
        await until_running(http, 1)
        tg.start_soon(unload)
        await anyio.sleep(0.05)
        assert "not loaded" in await message(http, lora_path="leaving")
    assert order == ["user", "unload"]
    await post(http, "/load_lora_adapter", lora_name="again", lora_path=path)
    alone = await generate(http, [6] * 5, {"max_new_tokens": 300, "temperature": 0}, lora_path="again")
    assert alone["output_ids"] == replies[0]["output_ids"]
    await post(http, "/unload_lora_adapter", lora_name="again")


async def test_information_routes(running, http):
    """Health, readiness, model and server information, under both of their names."""
    for path in ("/health", "/health_generate", "/ready"):
        async with http.get(path) as response:
            assert response.status == 200
    for path in ("/model_info", "/get_model_info"):
        async with http.get(path) as response:
            info = await response.json()
        assert info["model_path"] == str(running.model)
        assert info["served_model_name"] == "tiny"
    for path in ("/server_info", "/get_server_info"):
        async with http.get(path) as response:
            info = await response.json()
        assert (info["max_loaded_loras"], info["max_running_requests"]) == (3, 256)
        assert info["internal_states"][0]["num_running_reqs"] == 0
    load = await loads(http)
    assert load["lora"] == {"slots_used": 1, "slots_total": 3}
    assert 0 <= load["token_usage"] <= 1
    async with http.get("/flush_cache") as response:
        assert response.status == 200
    assert (await loads(http))["num_used_tokens"] == 0


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
    assert "queue is full" in await message(http, 503, input_ids=[[1]] * 601)


def test_the_server_ends_with_its_parent(tmp_path):
    """Killed with SIGKILL, the parent leaves no server behind; what a draining engine still asks for is answered."""
    model = make_model(tmp_path / "model")
    code = (
        "import os, subprocess, sys, time;"
        "subprocess.Popen([*sys.argv[1:], '--parent-pid', str(os.getpid())]); time.sleep(60)"
    )
    command = [sys.executable, "-m", "engine.embedded", "--model", str(model)]
    with subprocess.Popen([sys.executable, "-c", code, *command], stdout=subprocess.PIPE, cwd=ROOT) as parent:
        assert parent.stdout is not None
        ready = json.loads(parent.stdout.readline())
        server = psutil.Process(ready["pid"])
        parent.send_signal(signal.SIGKILL)
        time.sleep(1.0)
        body = {"input_ids": [1, 2, 3], "sampling_params": {"max_new_tokens": 200, "ignore_eos": True}}
        asked = urllib.request.Request(ready["url"] + "/generate", json.dumps(body).encode(), method="POST")
        with urllib.request.urlopen(asked, timeout=15) as answer:
            assert len(json.loads(answer.read())["output_ids"]) == 200
        assert server.wait(timeout=15) is not None or not server.is_running()


def test_a_model_that_is_not_served_ends_the_start_with_one_sentence(tmp_path):
    """Exit status 2, the reason on stderr, no traceback."""
    (tmp_path / "config.json").write_text('{"architectures": ["MambaForCausalLM"]}')
    command = [sys.executable, "-m", "engine.embedded", "--model", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert "MambaForCausalLM is not served here" in done.stderr
    assert "Traceback" not in done.stderr
