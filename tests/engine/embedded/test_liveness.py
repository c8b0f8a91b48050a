"""Every request is answered whatever fails in the model thread, and `/health` says whether tokens are drawn."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import anyio
import pytest
from anyio.to_thread import run_sync

from engine.embedded.decoder import Decoder
from engine.embedded.kv import KVPool
from engine.embedded.sampling import SamplingParams
from engine.embedded.scheduler import BatchLimits, BatchScheduler, ServerGauges
from engine.embedded.sequence import FinishKind, Sequence
from engine.embedded.server import PolicyServer
from engine.embedded.text import Text
from engine.embedded.worker import Worker
from tests.parts.embedded_models import make_model

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """One random model for all tests here."""
    return make_model(tmp_path_factory.mktemp("liveness") / "model")


@pytest.fixture
def scheduler(model) -> BatchScheduler:
    """A fresh scheduler."""
    return BatchScheduler(Decoder(model), Text(model), BatchLimits(max_running=16, kv_tokens=10_000), seed=1)


@asynccontextmanager
async def working(scheduler: BatchScheduler) -> AsyncIterator[Worker]:
    """The model thread, running for the time of the block."""
    worker = Worker(scheduler, 1, asyncio.get_running_loop().call_soon_threadsafe)
    async with anyio.create_task_group() as tg:
        tg.start_soon(run_sync, worker.run)
        try:
            yield worker
        finally:
            worker.stop()


async def ends(worker: Worker, *sequences: Sequence) -> list[FinishKind]:
    """Queue requests together; how each ended."""

    def add(scheduler: BatchScheduler) -> None:
        for sequence in sequences:
            scheduler.add(sequence)

    worker.submit(add)
    with anyio.fail_after(10):
        for sequence in sequences:
            await sequence.changed.wait()
    return [sequence.finish.kind for sequence in sequences]


def request(rid: str, first: int, new: int = 4) -> Sequence:
    """A request of 30 ids; equal `first` means equal prompts."""
    return Sequence(rid, [first, *range(29)], 0, SamplingParams(max_new_tokens=new, ignore_eos=True))


def breaks(monkeypatch, method: str, times: int, at: int = 1) -> None:
    """Let a method of the pool fail `times` times, from its `at`-th call on."""
    works, calls = KVPool.__dict__[method], []

    def fails(*arguments, **named):
        calls.append(None)
        if at <= len(calls) < at + times:
            raise RuntimeError("not enough memory")
        return works(*arguments, **named)

    monkeypatch.setattr(KVPool, method, fails)


@pytest.mark.parametrize("at", [1, 2, 3])
async def test_a_failed_admission_loses_no_request(scheduler, monkeypatch, at):
    """No memory for one: it gets an error, as do those that run; deferred siblings and the queue are served."""
    breaks(monkeypatch, "open", 1, at)
    async with working(scheduler) as worker:
        asked = [request(f"r{i}", first) for i, first in enumerate((5, 5, 5, 6, 5, 7))]
        found = await ends(worker, *asked)
        assert found.count(FinishKind.ERROR) == at
        assert found.count(FinishKind.LENGTH) == 6 - at
        assert "not enough memory" in next(s for s in asked if s.finish.kind is FinishKind.ERROR).finish.message
        assert await ends(worker, request("after", 5)) == [FinishKind.LENGTH]


async def test_a_lasting_failure_is_told_to_everybody(scheduler, monkeypatch):
    """Never any memory: every request ends with an error instead of being tried for ever."""
    breaks(monkeypatch, "open", 10**9)
    async with working(scheduler) as worker:
        assert await ends(worker, *(request(f"r{i}", i % 2) for i in range(6))) == [FinishKind.ERROR] * 6


async def test_a_failed_abort_leaves_the_thread_alive(scheduler, monkeypatch):
    """Aborted requests, running and waiting, end as aborted, the others with an error; later ones are served."""
    breaks(monkeypatch, "remember", 1, at=4)  # the prompts of three are shared before
    async with working(scheduler) as worker:
        long = [request(f"r{i}", i, new=400) for i in range(3)]
        queued = request("r0", 9)

        def abort(scheduler: BatchScheduler) -> None:
            scheduler.add(queued)
            worker.abort("r0")

        for sequence in long:
            worker.submit(lambda s, sequence=sequence: s.add(sequence))
        while scheduler.gauges.generated_tokens < 30:  # noqa: ASYNC110 - the model thread leaves a number
            await anyio.sleep(0.005)
        worker.submit(abort)
        with anyio.fail_after(10):
            for sequence in (*long, queued):
                await sequence.changed.wait()
        assert [s.finish.kind for s in (long[0], queued)] == [FinishKind.ABORT] * 2
        assert {s.finish.kind for s in long[1:]} == {FinishKind.ERROR}
        assert await ends(worker, request("after", 5)) == [FinishKind.LENGTH]


async def test_a_failed_question_is_an_error_for_who_asked(scheduler):
    """Not a wait without end, and not the end of the thread."""
    async with working(scheduler) as worker:
        with anyio.fail_after(10), pytest.raises(RuntimeError, match="model thread failed"):
            await worker.ask(lambda scheduler: 1 // 0)
        assert await worker.ask(lambda scheduler: scheduler.flush())


def silent_server(gauges: ServerGauges) -> tuple[PolicyServer, list[str]]:
    """A server whose model thread answers nothing, and what it was asked."""
    asked: list[str] = []
    worker = SimpleNamespace(submit=lambda command: asked.append("token"), abort=lambda rid: asked.append("abort"))
    return PolicyServer(None, SimpleNamespace(gauges=gauges, worker=worker)), asked


async def test_a_busy_server_is_healthy_at_once():
    """A token drawn a moment ago is enough: nothing queues behind the requests that drew it."""
    server, asked = silent_server(ServerGauges(last_token_s=time.monotonic() - 1))
    with anyio.fail_after(1):
        await server.alive()
    assert asked == []


async def test_anybodys_token_shows_that_an_idle_server_lives():
    """It draws a token for this, and is content with another's; without one it waits."""
    gauges = ServerGauges()
    server, asked = silent_server(gauges)
    with anyio.move_on_after(0.2) as scope:
        await server.alive()
    assert scope.cancelled_caught
    async with anyio.create_task_group() as tg:
        tg.start_soon(server.alive)
        await anyio.sleep(0.1)
        gauges.last_token_s = time.monotonic()
    assert asked == ["token", "abort"] * 2
    assert server.live == 0
