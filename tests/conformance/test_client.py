"""What the engine reads about a server, and a server driven by the engine's own client."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import anyio
import pytest

from engine.errors import ConfigError, Ended, PolicyError, RunError
from engine.types import Sampling
from tests.conformance.calls import (
    LONG,
    assert_sampled_by,
    client,
    generate,
    get,
    load_of,
    post,
    prompt_that_gives,
    until_running,
)
from tests.conformance.servers import ANSWER_END, CONTEXT, KV_TOKENS, RUNNING, SLOTS
from tests.parts.policy_parts import LIMITS, RUN_ID, policy_of, turn

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


async def test_a_busy_server_is_healthy(http):
    """While requests run: /ready without generating, /health from their tokens; the loads count them."""
    ends = []

    async def run(number: int) -> None:
        reply = await generate(http, [number] * 5, LONG, rid=f"busy-{number}")
        ends.append(reply["meta_info"]["finish_reason"]["type"])

    async with anyio.create_task_group() as tg:
        for number in range(3):
            tg.start_soon(run, number)
        await until_running(http, 3)
        load = await load_of(http)
        assert load["num_waiting_reqs"] == 0
        assert 0 < load["token_usage"] < 1
        for path in ("/ready", "/health", "/health_generate"):
            async with http.get(path) as response:
                assert response.status == 200
        await post(http, "/abort_request", abort_all=True)
    await until_running(http, 0)
    assert set(ends) <= {"abort", "length"}
    async with http.get("/health") as response:
        assert response.status == 200


async def test_what_is_cached_is_not_in_use(http):
    """An idle server has all of its cache for new requests, and says so: the engine stops growing where it is full."""
    ids = [210, *range(60, 109)]
    await generate(http, ids)
    await until_running(http, 0)
    load = await load_of(http)
    assert (load["token_usage"], load["num_used_tokens"]) == (0, 0)
    assert (await generate(http, ids))["meta_info"]["cached_tokens"] == 49


async def test_information_that_the_engine_reads(server, http, differs):
    """The model, and the sizes that bound a run."""
    info = await get(http, "/model_info")
    assert (info["model_path"], info["served_model_name"]) == (str(server.files.model), "tiny")
    assert info["weight_version"] == "default"
    info = await get(http, "/server_info")
    assert info["enable_lora"] is True
    assert (info["max_loaded_loras"], info["max_total_num_tokens"]) == (SLOTS, KV_TOKENS)
    assert info["context_length"] == CONTEXT


class TestClient:
    """HttpPolicy and Servers, as a run uses them."""

    async def test_a_turn_is_sampled_by_its_adapter(self, server, chat):
        """Load, complete under two versions and the base, unload: ids, log-probabilities and text of each."""
        names = [f"{RUN_ID}-v{version:05d}" for version in (1, 2)]
        events: list[dict[str, Any]] = []
        async with policy_of(chat, server.url, events=events) as (policy, servers):
            for version, name in enumerate(names, 1):
                await servers.load(name, server.files.adapters / f"v{version:05d}")
            for version, name in ((1, names[0]), (2, names[1]), (None, None)):
                asked = turn(chat, adapter=name, limits=replace(LIMITS, turn_s=60))
                completion = await policy.complete(asked)
                assert (completion.adapter, completion.server) == (name, server.url)
                assert completion.text == chat.decode(completion.ids)
                triples = [[p, i, None] for p, i in zip(completion.logprobs, completion.ids, strict=True)]
                reply = {"output_ids": list(completion.ids), "meta_info": {"output_token_logprobs": triples}}
                await assert_sampled_by(server.files, version, reply, list(asked.ids))
            for name in names:
                await servers.unload(name)
        assert [(event["event"], event["ok"]) for event in events] == [("load", True)] * 2 + [("unload", True)] * 2

    async def test_a_stop_string_is_kept(self, server, chat, http):
        """The text of a completion is that of its ids."""
        prompt, _ = await prompt_that_gives(http, ANSWER_END)
        async with policy_of(chat, server.url) as (policy, _):
            sampling = Sampling(temperature=0, stop=("</ans",))
            completion = await policy.complete(turn(chat, ids=prompt, adapter=None, sampling=sampling))
        assert completion.stop == "stop"
        assert completion.text.endswith("</answer>")
        assert completion.ids[-1] == ANSWER_END

    async def test_a_load_whose_answer_was_lost_is_repeated(self, server, chat):
        """The same files again are success, others under the name an error; resync leaves what is named."""
        first, second = (f"{RUN_ID}-v{version:05d}" for version in (1, 2))
        path = server.files.adapters / "v00001"
        async with policy_of(chat, server.url) as (_, servers):
            await servers.load(first, path)
        async with policy_of(chat, server.url) as (_, servers):
            await servers.load(first, path)
        async with policy_of(chat, server.url) as (_, servers):
            with pytest.RaisesGroup(pytest.RaisesExc(RunError, match=f"refuses adapter {first} .*already loaded")):
                await servers.load(first, server.files.adapters / "v00002")
            await servers.resync({second: server.files.adapters / "v00002"})
            async with client(server.url) as http:
                assert [card["id"] for card in (await get(http, "/v1/models"))["data"]] == ["tiny", second]
            await servers.resync({})

    async def test_a_refused_adapter_ends_the_run_with_the_servers_reason(self, server, chat):
        """The server's words, its url and the path."""
        async with policy_of(chat, server.url) as (_, servers):
            with pytest.RaisesGroup(pytest.RaisesExc(RunError, match=rf"{server.url} refuses .*/wide\): .*rank 32")):
                await servers.load(f"{RUN_ID}-v00009", server.files.adapters / "wide")

    async def test_an_adapter_that_is_not_there_puts_its_server_in_doubt(self, server, chat):
        """The refusal names the adapter, so that it is known for a restart; nothing is routed there any more."""
        async with policy_of(chat, server.url) as (policy, servers):
            missing = turn(chat, adapter=f"{RUN_ID}-v00077", limits=replace(LIMITS, turn_s=0.1))
            with pytest.raises(PolicyError, match=f"HTTP 400.*{RUN_ID}-v00077"):
                await policy.complete(missing)
            assert servers.route("g000001") is None

    async def test_loads_and_sizes_are_understood(self, server, chat, http):
        """Requests that run, and that wait, are counted; slots and cache are compared with what a run needs."""
        async with policy_of(chat, server.url) as (_, servers):
            assert await servers.slots(CONTEXT) == SLOTS
            with pytest.raises(ConfigError, match="max_total_num_tokens"):
                await servers.slots(KV_TOKENS + 1)
            for count, queued in ((1, 0), (RUNNING + 3, 3)):
                async with anyio.create_task_group() as tg:
                    for number in range(count):
                        tg.start_soon(generate, http, [number] * 5, LONG)
                    await until_running(http, count - queued)
                    loads = await servers.loads()
                    await post(http, "/abort_request", abort_all=True)
                assert (loads.running, loads.queued, loads.room) == (count - queued, queued, not queued)

    async def test_a_turn_at_the_end_of_the_context(self, server, chat):
        """Whatever is left of the context: a completion of all of it that the client asked for, or the limit."""
        lengths = []
        async with policy_of(chat, server.url) as (policy, _):
            for left in range(1, 12):
                asked = turn(chat, ids=[7] * (CONTEXT - left), adapter=None, sampling=Sampling(temperature=0))
                try:
                    completion = await policy.complete(asked)
                except Ended:
                    lengths.append(0)
                else:
                    lengths.append(len(completion.ids))
                    assert completion.stop == "length"
        assert lengths == [0] * 7 + [1, 2, 3, 4]
