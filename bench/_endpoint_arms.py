"""The arms of `bench endpoints`: a process each, so that its CPU time is the client's alone.

python -m bench._endpoint_arms '{"client": "batcher", "url": ..., "live": 4096, "calls": 20000, ...}'
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import anyio
import orjson
from pydantic import BaseModel

from engine.config.endpoints import EndpointSection
from engine.errors import UserError
from engine.llm.asking import JournaledAsker
from engine.llm.batching import EndpointError
from engine.llm.endpoint import Reachable, open_endpoint
from engine.llm.journal import open_journal
from engine.llm.question import ChatPrompt, ModelQuestion
from engine.packs.pack import load_pack
from engine.preflight.manifest import pack_file
from engine.processes.event_loop import UVLOOP
from engine.scripted.constant import ConstantSession
from engine.task import Task
from engine.world.llm_user import LlmUser

_T = TypeVar("_T")
Ask = Callable[[int], Awaitable[None]]
"""The next call of a coroutine, by its number."""
_REPLIES = 3
"""Of one user, before the next one is opened."""
_SHORT = {"type": "object", "properties": {"met": {"type": "boolean"}}, "required": ["met"]}


class Arm(BaseModel):
    """What is measured."""

    client: str
    """batcher, user (LlmUser and journal above it), openai, or none (the coroutines alone)."""
    url: str
    live: int
    calls: int
    think_s: float
    """Mean between two calls of a coroutine."""
    endpoint: dict[str, Any]
    """Of `[endpoints.NAME]`."""
    short: bool = False
    """Prompts of a few words, for a model whose context is small."""


@dataclass(slots=True, kw_only=True)
class Seen:
    """What the coroutines saw."""

    latencies: list[float] = field(default_factory=list)
    failed: int = 0
    _marks: dict[int, anyio.Event] = field(default_factory=dict)

    def ended(self, seconds: float) -> None:
        """One more call is over."""
        self.latencies.append(seconds)
        if (mark := self._marks.get(len(self.latencies))) is not None:
            mark.set()

    async def calls(self, number: int) -> None:
        """Until so many are over."""
        await self._marks.setdefault(number, anyio.Event()).wait()


def _tasks() -> Sequence[Task]:
    return [task for task in load_pack(pack_file("showcase")).tasks if task.user is not None]


def asked_of(task: Task, number: int) -> str:
    """A question for one of the task's facts."""
    assert task.user is not None
    facts = list(task.user.facts.values())
    return f"Thank you. And the {facts[number % len(facts)].keywords[0]}, please?"


class _Listening:
    """An Asker that keeps what it is asked, and answers nothing."""

    def __init__(self) -> None:
        self.prompts: list[ChatPrompt] = []

    async def ask(self, question: ModelQuestion, admit: Callable[..., _T]) -> _T:
        """Raises UserError, always."""
        del admit
        self.prompts.append(ChatPrompt(question.messages, question.schema, 0.0))
        raise UserError("only listening")


async def prompts(*, short: bool) -> list[ChatPrompt]:
    """What users are asked first: a prompt of each task, some 2,500 characters long."""
    if short:
        document = {"as": "judge", "item": "Was it met?"}
        asked = ({"role": "system", "content": "Decide."}, {"role": "user", "content": orjson.dumps(document).decode()})
        return [ChatPrompt(asked, _SHORT, 0.0)]
    listening = _Listening()
    for number, task in enumerate(await anyio.to_thread.run_sync(_tasks)):
        session = await LlmUser(listening, "cooperative").open(task, number, ConstantSession())
        try:
            await session.reply(asked_of(task, number))
        except UserError:
            continue
    return listening.prompts


# --- clients --------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _reachable(arm: Arm) -> AsyncIterator[Reachable]:
    async with open_endpoint("bench", EndpointSection.model_validate(arm.endpoint), arm.url, None) as opened:
        yield opened


@asynccontextmanager
async def batcher(arm: Arm) -> AsyncIterator[Ask]:
    """Endpoint and batcher directly."""
    some = await prompts(short=arm.short)
    async with _reachable(arm) as reachable:

        async def ask(number: int) -> None:
            await reachable.batcher.call(f"owner-{number % arm.live}", some[number % len(some)])

        yield ask


@asynccontextmanager
async def user(arm: Arm) -> AsyncIterator[Ask]:
    """A user played by the model: question, contract and journal too; every question is a new one."""
    tasks, sessions = await anyio.to_thread.run_sync(_tasks), {}
    async with (
        anyio.TemporaryDirectory(prefix="endpoints-") as directory,
        open_journal(Path(directory) / "journal.sqlite") as journal,
        _reachable(arm) as reachable,
    ):
        users = LlmUser(JournaledAsker(journal, reachable), "cooperative")

        async def ask(number: int) -> None:
            mine, turn = number % arm.live, number // arm.live
            task = tasks[mine % len(tasks)]
            if turn % _REPLIES == 0:
                sessions[mine] = await users.open(task, number, ConstantSession())
            await sessions[mine].reply(asked_of(task, turn))

        yield ask


@asynccontextmanager
async def openai(arm: Arm) -> AsyncIterator[Ask]:
    """The vendor's client, as its documentation shows it.

    Raises ImportError where it is not installed."""
    from openai import AsyncOpenAI  # noqa: PLC0415 - not a dependency; only this arm needs it

    some, section = await prompts(short=arm.short), EndpointSection.model_validate(arm.endpoint)
    async with AsyncOpenAI(base_url=f"{arm.url}/v1", api_key="none") as client:

        async def ask(number: int) -> None:
            prompt = some[number % len(some)]
            schema: Any = {"name": "reply", "schema": prompt.schema, "strict": True}
            messages: Any = prompt.messages
            reply = await client.chat.completions.create(
                model=section.model,
                messages=messages,
                temperature=prompt.temperature,
                max_tokens=section.max_tokens,
                response_format={"type": "json_schema", "json_schema": schema},
            )
            assert reply.choices[0].message.content

        yield ask


@asynccontextmanager
async def none(arm: Arm) -> AsyncIterator[Ask]:
    """No call: what the coroutines themselves cost."""
    del arm

    async def ask(number: int) -> None:
        del number

    yield ask


CLIENTS: Mapping[str, Callable[[Arm], Any]] = {"batcher": batcher, "user": user, "openai": openai, "none": none}


# --- measuring ------------------------------------------------------------------------------------------------------


async def measure(arm: Arm) -> dict[str, float]:
    """Cost of `calls` calls once all coroutines have begun."""
    seen, rng = Seen(), random.Random(0)
    async with CLIENTS[arm.client](arm) as ask, anyio.create_task_group() as group:

        async def live(index: int) -> None:
            for turn in count():
                await anyio.sleep(rng.uniform(0.0, 2.0 * arm.think_s))
                begun = time.perf_counter()
                try:
                    await ask(turn * arm.live + index)
                except (EndpointError, UserError):
                    seen.failed += 1
                seen.ended(time.perf_counter() - begun)

        for index in range(arm.live):
            group.start_soon(live, index)
        await seen.calls(arm.live)
        cpu_s, wall_s = time.process_time(), time.perf_counter()
        await seen.calls(arm.live + arm.calls)
        cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
        group.cancel_scope.cancel()
    return {
        "cpu_ms": 1e3 * cpu_s / arm.calls,
        "calls_per_s": arm.calls / wall_s,
        "p50_ms": 1e3 * median(seen.latencies[arm.live : arm.live + arm.calls]),
        "failed": seen.failed,
    }


def main() -> None:
    """Run one arm."""
    arm = Arm.model_validate_json(sys.argv[1])
    result = anyio.run(measure, arm, backend_options={"use_uvloop": UVLOOP})
    print(orjson.dumps(result).decode())


if __name__ == "__main__":
    main()
