"""Adapters: loaded and unloaded while requests run, never mixed up, refused with a reason."""

from __future__ import annotations

import anyio
import orjson
import pytest

from tests.conformance.calls import (
    adapter_path,
    assert_sampled_by,
    generate,
    get,
    loaded,
    post,
    refusal,
    until_running,
)
from tests.conformance.servers import SLOTS

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


async def test_turns_of_an_episode_are_cached(server, http):
    """Turn k reuses everything of turn k - 1 but its last token; another adapter, or the base, reuses nothing."""
    async with loaded(http, server.files, "cached", 1), loaded(http, server.files, "other", 2):
        ids = [200, *range(60, 109)]
        cached = []
        for turn_ in range(3):
            reply = await generate(http, ids, rid=f"turn-{turn_}", lora_path="cached")
            cached.append((reply["meta_info"]["cached_tokens"], len(ids)))
            ids = [*ids, *reply["output_ids"], 1, 2, 3]
        assert cached == [(0, 50), (57, 61), (68, 72)]
        for adapter in ("other", None):
            reply = await generate(http, ids, lora_path=adapter)
            assert reply["meta_info"]["cached_tokens"] == 0


async def test_requests_in_flight_keep_their_adapter(server, http):
    """A load beside them, under another name, changes nothing about them and pauses nobody."""
    replies = {}

    async def run(name: str | None, tokens: int) -> None:
        body = {"lora_path": name, "return_logprob": True, "rid": f"flight-{name}"}
        replies[name] = await generate(http, [6] * 5, {"max_new_tokens": tokens}, **body)

    async with loaded(http, server.files, "old", 1), anyio.create_task_group() as tg:
        tg.start_soon(run, "old", 600)
        tg.start_soon(run, None, 600)
        await until_running(http, 2)
        async with loaded(http, server.files, "new", 2):
            await run("new", 50)
            assert replies.keys() == {"new"}
    for name, version in (("old", 1), ("new", 2), (None, None)):
        assert replies[name]["meta_info"]["finish_reason"]["type"] == "length"
        await assert_sampled_by(server.files, version, replies[name], [6] * 5)


async def test_an_unload_waits_for_its_users_and_loads_wait_for_it(server, http):
    """The reply comes when the last user has ended, the next load's after that; others are served meanwhile."""
    order: list[str] = []
    last = b""

    async def use() -> None:
        nonlocal last
        sampling = {"max_new_tokens": 600, "ignore_eos": True}
        body = {"input_ids": [6] * 5, "lora_path": "leaving", "stream": True, "sampling_params": sampling}
        async with http.post("/generate", data=orjson.dumps(body)) as response:
            async for line in response.content:
                if line.startswith(b"data: {"):
                    last = line
                    order.append("token")

    async def change(path: str, **body: str) -> None:
        assert (await post(http, path, **body))[0] == 200
        order.append(path)

    async with loaded(http, server.files, "leaving", 1), anyio.create_task_group() as tg:
        tg.start_soon(use)
        await until_running(http, 1)
        tg.start_soon(lambda: change("/unload_lora_adapter", lora_name="leaving"))
        await anyio.sleep(0.05)
        path = adapter_path(server.files, 2)
        tg.start_soon(lambda: change("/load_lora_adapter", lora_name="waiting", lora_path=path))
        await generate(http, [1])
        assert "/unload_lora_adapter" not in order
    await post(http, "/unload_lora_adapter", lora_name="waiting")
    assert orjson.loads(last.removeprefix(b"data: "))["meta_info"]["finish_reason"]["type"] == "length"
    for path in ("/unload_lora_adapter", "/load_lora_adapter"):
        assert order[order.index(path) :].count("token") <= 1 < order.count("token")


async def test_a_name_is_loaded_once(server, http):
    """A second load of a loaded name is refused and says from where it is loaded; a third name is fine."""
    async with loaded(http, server.files, "taken", 1), loaded(http, server.files, "free", 1):
        for version in (1, 2):
            path = adapter_path(server.files, version)
            status, reply = await post(http, "/load_lora_adapter", lora_name="taken", lora_path=path)
            assert (status, reply["success"]) == (400, False)
            assert "already loaded" in reply["error_message"]
            assert reply["loaded_adapters"]["taken"] == adapter_path(server.files, 1)
        reply = await generate(http, [9] * 5, lora_path="taken", return_logprob=True)
        await assert_sampled_by(server.files, 1, reply, [9] * 5)


async def test_models_lists_the_base_and_every_adapter(server, http):
    """By name, with the path that each was loaded from."""
    async with loaded(http, server.files, "one", 1), loaded(http, server.files, "two", 2):
        cards = (await get(http, "/v1/models"))["data"]
        assert [(card["id"], card["root"], card["parent"]) for card in cards] == [
            ("tiny", "tiny", None),
            ("one", adapter_path(server.files, 1), "tiny"),
            ("two", adapter_path(server.files, 2), "tiny"),
        ]
    assert [card["id"] for card in (await get(http, "/v1/models"))["data"]] == ["tiny"]


@pytest.mark.parametrize("version", ["wide", "missing"])
async def test_bad_adapters_are_refused(server, http, version):
    """Too large a rank, or nothing there: 400 with a reason, nothing loaded, and the name stays free."""
    path = adapter_path(server.files, version)
    status, reply = await post(http, "/load_lora_adapter", lora_name="bad", lora_path=path)
    assert (status, reply["success"]) == (400, False)
    assert ("rank 32" if version == "wide" else version) in reply["error_message"]
    assert "bad" not in (reply["loaded_adapters"] or {})
    async with loaded(http, server.files, "bad", 1):
        await generate(http, [1], lora_path="bad")


async def test_adapters_from_elsewhere(server, http, differs):
    """A directory that is not below the server's root."""
    path = str(server.files.outside)
    status, _ = await post(http, "/load_lora_adapter", lora_name="outside", lora_path=path)
    assert status == (200 if differs.any_path else 400)
    status, reply = await post(http, "/unload_lora_adapter", lora_name="outside")
    assert (status, reply["success"]) == ((200, True) if differs.any_path else (400, False))


async def test_an_unloaded_adapter(server, http, differs):
    """Unloading it again is refused by name; a request for it is too, or loads it again."""
    async with loaded(http, server.files, "gone", 1):
        pass
    status, reply = await post(http, "/unload_lora_adapter", lora_name="gone")
    assert (status, reply["success"]) == (400, False)
    assert "gone" in reply["error_message"]
    if not differs.reloads:
        assert "gone" in await refusal(http, lora_path="gone")
        return
    await generate(http, [1], lora_path="gone")
    assert (await post(http, "/unload_lora_adapter", lora_name="gone"))[0] == 200


async def test_one_adapter_more_than_there_are_slots(server, http, differs):
    """It is refused, or takes the place of the one used least recently."""
    names = [f"slot-{version}" for version in range(1, SLOTS + 2)]
    statuses = []
    for version, name in enumerate(names, 1):
        path = adapter_path(server.files, version)
        statuses.append((await post(http, "/load_lora_adapter", lora_name=name, lora_path=path))[0])
    held = [card["id"] for card in (await get(http, "/v1/models"))["data"]][1:]
    for name in held:
        assert (await post(http, "/unload_lora_adapter", lora_name=name))[0] == 200
    assert statuses == [200] * SLOTS + [200 if differs.evicts else 400]
    assert held == (names[1:] if differs.evicts else names[:-1])
