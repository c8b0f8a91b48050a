"""The control plane against mock servers that restart, refuse and forget."""

from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import pytest
from aiohttp import web

from engine.errors import RunError
from engine.policy.servers import Servers
from engine.scripted.server import MockServer
from tests.parts.policy_parts import ADAPTER, RUN_ID, adapter_directory, policy_of, serving, tiny_chat, turn
from tests.parts.waiting import until

CHAT = tiny_chat()


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A directory that the mock server takes for version 3."""
    return adapter_directory(tmp_path)


def mock(**settings) -> MockServer:
    """A quick server."""
    return MockServer(**{"chat": CHAT, "latency_s": 0.001, **settings})


async def test_an_adapter_is_loaded_on_every_server_and_told(adapter):
    """A load returns when all servers have it; each load and unload is one event on the run's clock."""
    first, second, events = mock(), mock(), []
    async with serving(first) as a, serving(second) as b, policy_of(CHAT, a, b, events=events) as (_, servers):
        await servers.load(ADAPTER, adapter)
        assert first.adapters == second.adapters == {ADAPTER: str(adapter)}
        await servers.unload(ADAPTER)
        assert first.adapters == second.adapters == {}
    assert sorted((event["event"], event["server"]) for event in events) == sorted(
        (event, server) for event in ("load", "unload") for server in (a, b)
    )
    for event in events:
        assert (event["adapter"], event["version"], event["ok"]) == (ADAPTER, 3, True)
        assert event["start_s"] < event["end_s"]


async def test_loading_again_is_success(adapter):
    """A retried load, or a server that outlived the engine, has the adapter already: that is what was wanted."""
    server = mock(adapters={ADAPTER: str(adapter)})
    async with serving(server) as url, policy_of(CHAT, url) as (_, servers):
        await servers.load(ADAPTER, adapter)
        await servers.load(ADAPTER, adapter)


async def test_the_same_name_with_other_files_is_refused(adapter):
    """A name that a server holds for another directory is an error: nothing may be served under a reused name."""
    server = mock(adapters={ADAPTER: str(adapter.parent / "v00002")})
    async with serving(server) as url, policy_of(CHAT, url) as (_, servers):
        with pytest.RaisesGroup(pytest.RaisesExc(RunError, match=f"{url} refuses adapter {ADAPTER} .*already loaded")):
            await servers.load(ADAPTER, adapter)


async def test_a_refused_adapter_names_server_adapter_and_reason(adapter):
    """A directory that is no adapter is refused by the server; the run ends with its reason."""
    async with serving(mock()) as url, policy_of(CHAT, url) as (_, servers):
        with pytest.RaisesGroup(pytest.RaisesExc(RunError, match=rf"{url} refuses adapter {ADAPTER} .*adapter_config")):
            await servers.load(ADAPTER, adapter.parent)


async def test_a_restarted_server_gets_its_adapters_before_traffic(adapter):
    """A server that comes back empty on the same port serves the waiting turn, under its adapter, after the push."""
    before, after = mock(), mock()
    async with AsyncExitStack() as clients, anyio.create_task_group() as tg:
        async with serving(before) as url:
            port = int(url.rpartition(":")[2])
            policy, servers = await clients.enter_async_context(policy_of(CHAT, url))
            await servers.load(ADAPTER, adapter)
            tg.start_soon(servers.watch)
            assert (await policy.complete(turn(CHAT))).adapter == ADAPTER
        found = []

        async def complete() -> None:
            found.append(await policy.complete(turn(CHAT, index=1)))

        tg.start_soon(complete)
        await until(lambda: not servers.all[0].healthy)
        assert servers.route("g000001") is None
        async with serving(after, port):
            await until(lambda: found)
            assert after.adapters == {ADAPTER: str(adapter)}
            assert after.requests == 1
            tg.cancel_scope.cancel()
    assert found[0].adapter == ADAPTER


async def test_a_server_that_forgot_its_adapters_is_noticed_by_a_request(adapter):
    """A refusal of an adapter that was loaded means a restart: the turn waits for the push and succeeds."""
    server = mock()
    async with serving(server) as url, policy_of(CHAT, url) as (policy, servers):
        await servers.load(ADAPTER, adapter)
        server.adapters.clear()
        async with anyio.create_task_group() as tg:
            tg.start_soon(servers.watch)
            assert (await policy.complete(turn(CHAT))).adapter == ADAPTER
            tg.cancel_scope.cancel()


async def test_a_load_waits_for_a_server_that_is_away(adapter):
    """A version announced while a server restarts is loaded when it is back."""
    async with serving(mock()) as url:
        port = int(url.rpartition(":")[2])
    back = mock()
    async with (
        Servers([url], run_id=RUN_ID, clock=anyio.current_time, on_event=lambda _: None) as servers,
        anyio.create_task_group() as tg,
    ):
        tg.start_soon(servers.load, ADAPTER, adapter)
        await anyio.sleep(0.2)
        async with serving(back, port):
            await until(lambda: ADAPTER in back.adapters)


async def test_swaps_do_not_wait_for_a_server_that_is_away(adapter):
    """One of two: the other gets the load and the unload now, it gets both before its traffic."""
    old = f"{RUN_ID}-v00002"
    first, second, order = mock(), mock(), []
    async with serving(first) as a, serving(second) as b, policy_of(CHAT, a, b, events=order) as (_, servers):
        await servers.load(old, adapter)
        away = servers.all[1]
        servers.suspect(away)
        await servers.load(ADAPTER, adapter)
        await servers.unload(old)
        assert (set(first.adapters), set(second.adapters)) == ({ADAPTER}, {old})
        order.clear()
        async with anyio.create_task_group() as tg:
            tg.start_soon(servers.watch)
            await until(lambda: away.healthy)
            tg.cancel_scope.cancel()
        assert set(second.adapters) == {ADAPTER}
    assert [(row["event"], row["server"]) for row in order] == [("unload", b), ("load", b), ("restart", b)]


async def test_resync_leaves_exactly_the_named_adapters_of_this_run(adapter):
    """Versions of an earlier engine are unloaded, the named ones loaded, other runs' adapters not touched."""
    server = mock(adapters={f"{RUN_ID}-v00001": "v00001", "other-00000000-v00001": "v00001"})
    async with serving(server) as url, policy_of(CHAT, url) as (_, servers):
        await servers.resync({ADAPTER: adapter})
    assert set(server.adapters) == {ADAPTER, "other-00000000-v00001"}


async def test_new_groups_avoid_a_server_that_is_busy_for_others(adapter):
    """What a server reports counts, also where it works for somebody else; so does what is in flight from here."""
    busy, idle = mock(latency_s=30.0), mock(latency_s=30.0)
    async with serving(busy) as a, serving(idle) as b, policy_of(CHAT, a, b) as (policy, servers):
        await servers.load(ADAPTER, adapter)
        async with (
            policy_of(CHAT, a) as (stranger, _),
            anyio.create_task_group() as tg,
        ):
            for index in range(3):
                tg.start_soon(stranger.complete, turn(CHAT, f"g000900.{index:02d}"))
            await until(lambda: busy.requests == 3)
            assert (await servers.loads()).running == 3
            assert servers.route("g000001").url == b
            for index in range(4):
                tg.start_soon(policy.complete, turn(CHAT, f"g000001.{index:02d}"))
            await until(lambda: idle.requests == 4)
            assert servers.route("g000002").url == a
            tg.cancel_scope.cancel()


async def test_loads_and_slots_are_read_from_the_servers(adapter):
    """Running requests add up over servers; the smallest server says how many adapters fit."""
    slow = mock(latency_s=5.0, slots=9)
    async with serving(slow) as a, serving(mock(slots=6)) as b, policy_of(CHAT, a, b) as (policy, servers):
        assert await servers.slots() == 6
        await servers.load(ADAPTER, adapter)
        mine = next(group for group in (f"g{n:06d}" for n in range(99)) if servers.route(group).url == a)
        async with anyio.create_task_group() as tg:
            tg.start_soon(policy.complete, turn(CHAT, f"{mine}.00"))
            await until(lambda: slow.requests == 1)
            assert (await servers.loads()).running == 1
            tg.cancel_scope.cancel()


async def test_a_server_that_is_not_there_is_named():
    """Nobody listening: an error with the URL and what to look at, within the time given."""
    async with Servers(["http://127.0.0.1:9"], run_id=RUN_ID, clock=lambda: 0.0, on_event=print) as servers:
        with pytest.raises(RunError, match=r"http://127\.0\.0\.1:9 was not ready in 0\.3 s; look at its log"):
            await servers.ready(0.3)


def test_no_server_at_all_is_refused():
    """An empty list of URLs names the key to set."""
    with pytest.raises(RunError, match=r"policy\.urls"):
        Servers([], run_id=RUN_ID, clock=lambda: 0.0, on_event=print)


class Nonsense(MockServer):
    """Answers its information routes with JSON of another shape."""

    async def loads(self, _request: web.Request) -> web.Response:
        """A list of numbers."""
        return web.json_response({"loads": [1, 2]})

    async def models(self, _request: web.Request) -> web.Response:
        """No names."""
        return web.json_response({"data": [{"name": "x"}]})

    async def load(self, _request: web.Request) -> web.Response:
        """SGLang's own failure: nothing is said of what is loaded."""
        value = {"success": False, "error_message": "LoRA is not enabled", "loaded_adapters": None}
        return web.json_response(value, status=400)


async def test_nonsense_on_the_control_plane_is_named(adapter):
    """Another shape is no traceback: loads say that they are not complete, the rest names server and words."""
    server = Nonsense(chat=CHAT, latency_s=0.001)
    async with serving(server) as url, policy_of(CHAT, url) as (_, servers):
        assert not (await servers.loads()).complete
        with pytest.raises(ExceptionGroup) as group:
            await servers.load(ADAPTER, adapter)
        [refused] = group.value.exceptions
        assert url in str(refused)
        assert "LoRA is not enabled" in str(refused)
        with pytest.raises(
            RunError, match=rf"{url} does not answer as SGLang does.*/v1/models: not what SGLang answers"
        ):
            await servers.resync({})


async def test_no_more_episodes_are_welcome_while_a_server_is_silent():
    """An outage is no empty queue."""
    first, second = mock(), mock()
    async with serving(first) as a, serving(second) as b, policy_of(CHAT, a, b) as (_, servers):
        assert (await servers.loads()).room
        servers.suspect(servers.all[1])
        loads = await servers.loads()
        assert (loads.room, loads.down) == (False, 1)


async def test_an_adapter_that_an_unload_left_behind_is_unloaded_later(adapter):
    """An unload without an answer would fill the server's slots; other runs' adapters stay."""
    left = f"{RUN_ID}-v00001"
    server = mock(adapters={left: "v00001", "other-00000000-v00001": "v00001"})
    async with serving(server) as url, policy_of(CHAT, url) as (_, servers):
        await servers.load(ADAPTER, adapter)
        async with anyio.create_task_group() as tg:
            tg.start_soon(servers.watch)
            await until(lambda: left not in server.adapters)
            tg.cancel_scope.cancel()
    assert set(server.adapters) == {ADAPTER, "other-00000000-v00001"}


async def test_only_a_server_that_lost_something_has_restarted(adapter):
    """A refused connection or lost adapters are a restart; a server that was only silent was down."""
    events = []
    server = mock()
    async with serving(server) as url, policy_of(CHAT, url, events=events) as (_, servers):
        await servers.load(ADAPTER, adapter)
        async with anyio.create_task_group() as tg:
            tg.start_soon(servers.watch)
            server.adapters.clear()
            await until(lambda: any(event["event"] == "restart" for event in events))
            tg.cancel_scope.cancel()
    assert [event["event"] for event in events if event["event"] in ("restart", "down")] == ["restart"]


class Guarded(MockServer):
    """Answers nothing but /ready without its key, as SGLang does when it is started with --api-key."""

    KEY = "sesame"

    def application(self):
        """The routes, behind the key."""

        @web.middleware
        async def guard(request, handler):
            if request.path != "/ready" and request.headers.get("Authorization") != f"Bearer {self.KEY}":
                return web.json_response({"error": "Unauthorized"}, status=401)
            return await handler(request)

        app = super().application()
        app.middlewares.append(guard)
        return app


async def test_a_key_opens_a_guarded_server(adapter):
    """Control requests and generation carry it."""
    async with serving(Guarded(chat=CHAT)) as url, policy_of(CHAT, url, api_key=Guarded.KEY) as (policy, servers):
        await servers.load(ADAPTER, adapter)
        completion = await policy.complete(turn(CHAT, adapter=ADAPTER))
    assert completion.ids is not None


async def test_a_guarded_server_is_named_with_the_remedy():
    """Without the key, and without ever showing one."""
    async with serving(Guarded(chat=CHAT)) as url, policy_of(CHAT, url, api_key="wrong-secret") as (_, servers):
        with pytest.raises(RunError, match=r"it wants an API key: see policy\.api_key_env") as caught:
            await servers.slots()
    assert "wrong-secret" not in str(caught.value)
