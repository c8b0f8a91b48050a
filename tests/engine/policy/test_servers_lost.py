"""Servers that hang or die under requests: real processes, real signals, two mock servers of which one is lost."""

import signal
import subprocess
from collections import Counter
from pathlib import Path

import anyio
import pytest
from aiohttp import web

from engine.policy import control
from engine.scripted.server import MockServer
from tests.parts.load_runs import mock_process
from tests.parts.policy_parts import (
    ADAPTER,
    RUN_ID,
    adapter_directory,
    policy_of,
    serving,
    tiny_chat,
    tiny_model,
    turn,
)
from tests.parts.waiting import until

CHAT = tiny_chat()
NEXT = f"{RUN_ID}-v00004"
GROUPS, SIZE = 6, 4

Process = tuple[str, subprocess.Popen]


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Half of the silence is enough."""
    monkeypatch.setattr(control, "SILENT_S", 1.5)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """What ADAPTER is loaded from."""
    return adapter_directory(tmp_path, 3)


@pytest.fixture
def new(tmp_path: Path) -> Path:
    """What NEXT is loaded from."""
    return adapter_directory(tmp_path, 4)


@pytest.fixture
def two() -> tuple[Process, Process]:
    """Two mock servers, two seconds a completion."""
    arguments = (tiny_model(), "--latency-s", "2")
    with mock_process(*arguments) as first, mock_process(*arguments) as second:
        yield first, second


class Play:
    """Episodes of a few groups, one turn each, all in flight at once."""

    def __init__(self, policy, servers) -> None:
        self.policy, self.servers = policy, servers
        self.done = {}
        self.began_on = {}

    async def start(self, tg) -> None:
        """Returns when every request is in flight."""
        for group in range(GROUPS):
            for index in range(SIZE):
                tg.start_soon(self._one, f"g{group:06d}.{index:02d}")
        await until(lambda: sum(len(server.flying) for server in self.servers.all) == GROUPS * SIZE)
        self.began_on = {rid.partition("~")[0]: server.url for server in self.servers.all for rid in server.flying}

    async def _one(self, episode: str) -> None:
        asked = turn(CHAT, episode)
        self.done[asked.id] = await self.policy.complete(asked)

    async def finish(self) -> None:
        """Every turn has its completion."""
        await until(lambda: len(self.done) == GROUPS * SIZE)


async def test_a_hung_server_is_ejected_its_requests_moved_and_it_comes_back(two, old, new):
    """SIGSTOP: connections are accepted, nothing answers. A load under way does not wait for it either."""
    (a, process), (b, _) = two
    events = []
    async with policy_of(CHAT, a, b, events=events) as (policy, servers), anyio.create_task_group() as tg:
        await servers.load(ADAPTER, old)
        tg.start_soon(servers.watch)
        play = Play(policy, servers)
        await play.start(tg)
        process.send_signal(signal.SIGSTOP)
        await servers.load(NEXT, new)
        hung, well = servers.all
        assert (hung.healthy, well.healthy) == (False, True)
        assert (NEXT in hung.held, NEXT in well.held) == (False, True)
        await play.finish()
        await servers.unload(ADAPTER)
        process.send_signal(signal.SIGCONT)
        await until(lambda: hung.healthy)
        assert set(hung.held) == {NEXT}
        assert {servers.route(f"g{group:06d}").url for group in range(GROUPS)} == {b}
        async with anyio.create_task_group() as newcomers:
            for group in range(100, 104):
                newcomers.start_soon(policy.complete, turn(CHAT, f"g{group:06d}.00", adapter=NEXT))
            await until(lambda: all(server.flying for server in servers.all))
        tg.cancel_scope.cancel()
    _all_moved(play, events, a, b)
    assert {row["event"] for row in events if "turn" in row} == {"moved"}
    assert _times_away(events, a) == [("down", True)]


async def test_a_killed_server_loses_no_turn(two, old):
    """SIGKILL: its connections are reset, the next is refused. A server that does not come back is on record."""
    (a, process), (b, _) = two
    events = []
    async with policy_of(CHAT, a, b, events=events) as (policy, servers), anyio.create_task_group() as tg:
        await servers.load(ADAPTER, old)
        tg.start_soon(servers.watch)
        play = Play(policy, servers)
        await play.start(tg)
        process.kill()
        await play.finish()
        tg.cancel_scope.cancel()
    _all_moved(play, events, a, b)
    assert _times_away(events, a) == [("restart", False)]


def _times_away(events, server):
    """The times in which a server had no traffic, and whether it came back."""
    return [(row["event"], row["ok"]) for row in events if row["server"] == server and "adapter" not in row]


def _all_moved(play: Play, events: list, lost: str, other: str) -> None:
    """Turns that were on the lost server, and only they, were tried again; groups stayed together."""
    assert set(Counter(play.began_on.values())) == {lost, other}
    for group in range(GROUPS):
        assert len({url for turn_id, url in play.began_on.items() if turn_id.startswith(f"g{group:06d}.")}) == 1
    broken = {row["turn"] for row in events if "turn" in row}
    assert broken == {turn_id for turn_id, url in play.began_on.items() if url == lost}
    assert {completion.server for completion in play.done.values()} == {other}


async def test_the_only_server_is_waited_for(old):
    """It hangs and comes back within the turn's time: nothing was moved, nothing was asked twice."""
    events, server = [], Hung(chat=CHAT, latency_s=0.5)
    async with serving(server) as url, policy_of(CHAT, url, events=events) as (policy, servers):
        await servers.load(ADAPTER, old)
        async with anyio.create_task_group() as tg:
            tg.start_soon(servers.watch)
            play = Play(policy, servers)
            await play.start(tg)
            server.hang()
            await until(lambda: not servers.all[0].healthy)
            server.go_on()
            await play.finish()
            await until(lambda: servers.all[0].healthy)
            tg.cancel_scope.cancel()
    assert server.requests == GROUPS * SIZE
    assert [row["event"] for row in events] == ["load", "down"]


async def test_what_was_moved_is_aborted_when_the_server_can_hear_it(old):
    """Nobody waits for it there; a server that was silent would go on with it."""
    slow, quick = Hung(chat=CHAT, latency_s=60.0), MockServer(chat=CHAT, latency_s=0.01)
    async with serving(slow) as a, serving(quick) as b, policy_of(CHAT, a, b) as (policy, servers):
        await servers.load(ADAPTER, old)
        async with anyio.create_task_group() as tg:
            tg.start_soon(servers.watch)
            servers.all[1].reported = 1
            tg.start_soon(policy.complete, turn(CHAT))
            await until(lambda: slow.requests == 1)
            slow.hang()
            await until(lambda: quick.requests == 1)
            slow.go_on()
            await until(lambda: slow.aborts == 1)
            await until(lambda: servers.all[0].healthy)
            tg.cancel_scope.cancel()
    assert (slow.requests, quick.requests) == (1, 1)


class Hung(MockServer):
    """A server that stops answering anything, and goes on."""

    def hang(self) -> None:
        """From now on nothing is answered."""
        self._resume = anyio.Event()

    def go_on(self) -> None:
        """What was asked meanwhile is answered."""
        self._resume.set()
        self._resume = None

    def application(self) -> web.Application:
        """All routes, behind the silence."""

        @web.middleware
        async def silence(request, handler):
            if self._resume is not None:
                await self._resume.wait()
            return await handler(request)

        app = super().application()
        app.middlewares.append(silence)
        return app
