"""The arms of `python -m bench core`: `python -m bench._core_arms ARM URL LIVE TURNS RUN_DIR` prints one JSON line."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import orjson
import psutil

from engine.chat.chat_format import ChatFormat
from engine.config.load import load
from engine.core.episode import run_episode
from engine.core.seams import EpisodePlan, Seams
from engine.packs.pack import load_pack
from engine.processes.event_loop import UVLOOP
from engine.reward.rubric import RubricScorer
from engine.run.__main__ import serve_run
from engine.rundir.layout import RunDir
from engine.scripted import SlowPolicy
from engine.task import Task
from engine.types import Limits, Sampling
from engine.world.offline import OfflineUser, OfflineWorld

LIMITS = Limits(turns=8, tokens=1024, completion_tokens=48, wall_s=300.0, turn_s=60.0)
_WARM_TURNS = 4
"""Turns per live episode before measuring starts."""
_BARE_TURNS = 5
_OBSERVED = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What `turns` turns cost this process, all threads."""

    turns: int
    cpu_s: float
    wall_s: float
    tokenizing_s: float
    rss_mb: float


class TimedTokenizer:
    """A tokenizer that adds up the time spent in it."""

    spent_s = 0.0

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def encode(self, *arguments: Any, **options: Any) -> Any:
        """As the tokenizer does."""
        started = time.perf_counter()
        try:
            return self._inner.encode(*arguments, **options)
        finally:
            TimedTokenizer.spent_s += time.perf_counter() - started

    def decode(self, *arguments: Any, **options: Any) -> Any:
        """As the tokenizer does."""
        started = time.perf_counter()
        try:
            return self._inner.decode(*arguments, **options)
        finally:
            TimedTokenizer.spent_s += time.perf_counter() - started


async def _counted(session: aiohttp.ClientSession, url: str, enough: int) -> int:
    """Requests that the server has had, once there are `enough`."""
    requests = -1
    while requests < enough:
        await anyio.sleep(0.5)
        async with session.get(f"{url}/server_info") as response:
            requests = int(orjson.loads(await response.read())["mock"]["requests"])
    return requests


async def _measure(url: str, live: int, turns: int) -> Cost:
    """Cost of the next `turns` turns once the load is steady; the server counts them."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session:
        first = await _counted(session, url, _WARM_TURNS * live)
        cpu_s, wall_s, tokenizing_s = time.process_time(), time.perf_counter(), TimedTokenizer.spent_s
        last = await _counted(session, url, first + turns)
        return Cost(
            turns=last - first,
            cpu_s=time.process_time() - cpu_s,
            wall_s=time.perf_counter() - wall_s,
            tokenizing_s=TimedTokenizer.spent_s - tokenizing_s,
            rss_mb=psutil.Process().memory_info().rss / 1e6,
        )


async def engine(url: str, live: int, turns: int, run: Path) -> Cost:
    """The whole engine: scheduler, worlds, rewards, stream, adapters, metrics."""
    original = ChatFormat.load

    def timed(model: Path, system: str = "{rules}") -> ChatFormat:
        chat = original(model, system)
        chat._tokenizer = TimedTokenizer(chat._tokenizer)  # type: ignore[assignment]  # noqa: SLF001 - a stopwatch
        return chat

    ChatFormat.load = timed  # type: ignore[method-assign,assignment]
    async with anyio.create_task_group() as tg:
        tg.start_soon(serve_run, RunDir(run))
        cost = await _measure(url, live, turns)
        tg.cancel_scope.cancel()
    return cost


async def bare(url: str, live: int, turns: int, run: Path) -> Cost:
    """Nothing but POST /generate with ids and log-probabilities, prompts growing as an episode's do."""
    chat = await anyio.to_thread.run_sync(_chat, run)
    prompts = await anyio.to_thread.run_sync(_prompts, chat, run)
    numbers = count()

    async def loop(session: aiohttp.ClientSession, index: int) -> None:
        while True:
            ids = list(prompts[index % len(prompts)])
            for _ in range(_BARE_TURNS):
                body = {
                    "rid": f"bare{next(numbers):09d}@",
                    "input_ids": ids,
                    "sampling_params": {"max_new_tokens": 48, "temperature": 1.0},
                    "return_logprob": True,
                }
                async with session.post(f"{url}/generate", data=orjson.dumps(body)) as response:
                    reply = orjson.loads(await response.read())
                ids += reply["output_ids"]
                ids += ids[:_OBSERVED]

    async with (
        aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=live),
            timeout=aiohttp.ClientTimeout(total=None),
            headers={"Content-Type": "application/json"},
        ) as session,
        anyio.create_task_group() as tg,
    ):
        for index in range(live):
            tg.start_soon(loop, session, index)
        cost = await _measure(url, live, turns)
        tg.cancel_scope.cancel()
    return cost


def _prompts(chat: ChatFormat, run: Path) -> list[list[int]]:
    """The first prompts of 256 tasks; the pack itself is let go, so that no collector walks through it."""
    return [list(chat.prompt(task)[1]) for task in load_pack(run / "pack.jsonl.zst").tasks[:256]]


def _chat(run: Path) -> ChatFormat:
    return ChatFormat.load(Path(load(run / "run.toml").config.model.path))


def _plan(task: Task, index: int) -> EpisodePlan:
    group_id = f"g{index:06d}"
    return EpisodePlan(
        id=f"{group_id}.00",
        group_id=group_id,
        task=task,
        seed=index,
        version=0,
        adapter=None,
        limits=LIMITS,
        sampling=Sampling(),
        queued_s=0.0,
    )


async def waits(_: str, live: int, turns: int, run: Path) -> dict[str, float]:
    """Wall time of `live` episodes with jittered 2 s turns, against coroutines that only wait as long."""
    del turns
    chat = await anyio.to_thread.run_sync(_chat, run)
    tasks = (await anyio.to_thread.run_sync(load_pack, run / "pack.jsonl.zst")).tasks
    seams = Seams(
        policy=SlowPolicy(chat),
        world=OfflineWorld(),
        user=OfflineUser(),
        scorer=RubricScorer(),
        chat=chat,
        clock=anyio.current_time,
    )
    ids: dict[str, int] = {}

    async def episode(index: int) -> None:
        played = await run_episode(_plan(tasks[index % len(tasks)], index), seams, lambda _: False)
        ids[played.id] = played.turns

    async def only_waits(index: int) -> None:
        episode_id = _plan(tasks[0], index).id
        for turn in range(ids[episode_id]):
            rng = random.Random(f"0:{episode_id}@{turn:02d}")
            await anyio.sleep(SlowPolicy.latency_s * rng.uniform(0.5, 1.5))

    async def all_of(each: Callable[[int], Coroutine[Any, Any, None]]) -> float:
        started = time.perf_counter()
        async with anyio.create_task_group() as tg:
            for index in range(live):
                tg.start_soon(each, index)
        return time.perf_counter() - started

    engine_s, bare_s = await all_of(episode), await all_of(only_waits)
    return {"engine_s": engine_s, "bare_s": bare_s, "turns": sum(ids.values())}


def main() -> None:
    """Run one arm: ARM URL LIVE TURNS RUN_DIR."""
    name, url, live, turns, run = sys.argv[1:]
    arms: dict[str, Callable[..., Awaitable[Any]]] = {"engine": engine, "bare": bare, "waits": waits}
    result = anyio.run(arms[name], url, int(live), int(turns), Path(run), backend_options={"use_uvloop": UVLOOP})
    print(orjson.dumps(asdict(result) if isinstance(result, Cost) else result).decode())


if __name__ == "__main__":
    main()
