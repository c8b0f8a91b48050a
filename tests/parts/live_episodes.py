"""What the tests of looking at a run share: episodes that wait for the test at every turn."""

from array import array
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import orjson
import pytest
from anyio.abc import SocketStream
from anyio.streams.buffered import BufferedByteReceiveStream

from engine.attach.server import Attach
from engine.core.episode import run_episode
from engine.core.live import LiveEpisodes
from engine.core.seams import EpisodePlan, Seams
from engine.packs.pack import parse_task
from engine.rundir.layout import RunDir
from engine.scripted.constant import ConstantScorer, ConstantUser, ConstantWorld
from engine.task import Rubric, RubricItem, Task
from engine.types import (
    Completion,
    Episode,
    EpisodeGroup,
    Event,
    EventKind,
    Limits,
    Outcome,
    Reward,
    Sampling,
    Source,
    Span,
    StopReason,
    Turn,
    TurnTiming,
    Verdict,
)
from tests.engine.core.test_episode import DONE, LIMITS, ORDER, STOP, Letters
from tests.engine.telemetry.test_window import Some
from tests.parts.waiting import LIMIT_S
from tests.parts.worlds import task_json


class Gated:
    """A policy that says a line whenever the test lets an episode go on by one turn."""

    def __init__(self, *lines: str) -> None:
        self.lines = lines or (ORDER, DONE)
        self.waiting: dict[str, anyio.Event] = {}

    async def complete(self, turn: Turn) -> Completion:
        """The next line, once it may."""
        await self.waiting.setdefault(turn.id, anyio.Event()).wait()
        text = self.lines[min(turn.index, len(self.lines) - 1)]
        ids = [*map(ord, text), STOP]
        logprobs = [-1 / (place + 3) for place in range(len(ids))]
        return Completion(text=text, ids=ids, logprobs=logprobs, adapter=turn.adapter, server="here", stop="stop")

    def go(self, episode_id: str, *turns: int) -> None:
        """Let these turns of an episode be sampled."""
        for turn in turns or range(len(self.lines)):
            self.waiting.setdefault(f"{episode_id}@{turn:02d}", anyio.Event()).set()


def seams_of(policy: Any, live: LiveEpisodes[Any] | None, **parts: Any) -> Seams:
    """Constant everything beside the policy."""
    whole = {"world": ConstantWorld(), "user": ConstantUser(), "scorer": ConstantScorer(), "chat": Letters(), **parts}
    return Seams(policy=policy, clock=anyio.current_time, live=live, **whole)


def plan_of(episode_id: str, task: Task | None = None) -> EpisodePlan:
    """An episode of the shop task."""
    return EpisodePlan(
        id=episode_id,
        group_id=episode_id.partition(".")[0],
        task=task or parse_task(task_json()),
        seed=1,
        version=3,
        adapter="run-v00003",
        limits=LIMITS,
        sampling=Sampling(),
        queued_s=0.0,
    )


async def played(episode_id: str, seams: Seams, task: Task | None = None) -> Episode:
    """One episode, played to its end."""
    return await run_episode(plan_of(episode_id, task), seams, lambda _: False)


def group_of(*episodes: Episode, source: Source = Source.POLICY) -> EpisodeGroup:
    """A group of these, as it is written."""
    return EpisodeGroup(
        id=episodes[0].id.partition(".")[0],
        position=0,
        task_id="shop",
        source=source,
        sampling=Sampling(),
        episodes=episodes,
    )


def scored(episode_id: str, value: float | None) -> Episode:
    """The record of an episode with that reward."""
    return Episode(
        id=episode_id,
        task_id="shop",
        seed=1,
        adapter=None,
        version=0,
        server="",
        messages=(),
        events=(),
        tokens=None,
        stop=StopReason.ANSWER,
        outcome=Outcome.INFRA_ERROR if value is None else Outcome.AGENT_FAIL,
        reward=None if value is None else Reward(value=value, F=1.0, N=0.0, I=0.0),
        final_state=None,
        timings=(),
        turns=1,
    )


LISTS = ("messages", "events", "timings", "ids", "logprobs", "spans")


class Client:
    """Somebody who looks."""

    def __init__(self, stream: SocketStream) -> None:
        self.stream, self.received = stream, BufferedByteReceiveStream(stream)

    async def send(self, content: bytes) -> None:
        """One message."""
        await self.stream.send(len(content).to_bytes(4, "big") + content)

    async def answer(self) -> Any:
        """The next answer."""
        size = int.from_bytes(await self.received.receive_exactly(4), "big")
        assert size <= 65_536
        return orjson.loads(await self.received.receive_exactly(size))

    async def ask(self, **question: Any) -> Any:
        """An answer to a question of protocol 1."""
        await self.send(orjson.dumps({"v": 1, **question}))
        return await self.answer()

    async def hung_up(self) -> bool:
        """Whether the engine closed the connection."""
        with pytest.raises((anyio.IncompleteRead, anyio.EndOfStream, anyio.BrokenResourceError)):
            await self.received.receive_exactly(1)
        return True


@asynccontextmanager
async def looked_at(tmp_path: Path, live: LiveEpisodes[Any]) -> AsyncIterator[Any]:
    """A server for these episodes; gives how to connect."""
    run = RunDir(tmp_path)
    server = Attach(run, live, anyio.current_time)

    async def connect() -> Client:
        with anyio.fail_after(LIMIT_S):
            while True:
                try:
                    clients.append(Client(await anyio.connect_unix(tmp_path / "engine.sock")))
                except OSError:
                    await anyio.sleep(0.005)
                else:
                    return clients[-1]

    clients: list[Client] = []
    try:
        async with anyio.create_task_group() as tg:
            tg.start_soon(server.serve)
            yield connect
            tg.cancel_scope.cancel()
    finally:
        for client in clients:
            await client.stream.aclose()


def followed(*ids: str, have: Mapping[str, Mapping[str, int]] | None = None) -> list[dict[str, Any]]:
    """What follows these from the beginning."""
    return [{"id": one, "have": dict.fromkeys(LISTS, 0) if have is None else have[one]} for one in ids]


class Whole:
    """What a client has of an episode."""

    def __init__(self) -> None:
        self.lists: dict[str, list[Any]] = {name: [] for name in LISTS}
        self.last: dict[str, Any] = {}

    @property
    def have(self) -> dict[str, int]:
        """The counts that it asks with."""
        return {name: len(values) for name, values in self.lists.items()}

    def add(self, delta: Mapping[str, Any]) -> None:
        """One answer."""
        for name in LISTS:
            self.lists[name] += delta[name]
        self.last = {**self.last, **delta}


def huge(
    episode_id: str, text: str, *, ids: int = 0, messages: int = 3, arguments: dict[str, Any] | None = None
) -> SimpleNamespace:
    """An episode with as much of everything as one likes."""
    item = RubricItem(id="s1", text=text)
    task = SimpleNamespace(id="t" * 500, instruction=text, rubric=Rubric(subgoals=(item,) * 50, forbidden=(item,)))
    event = Event(number=0, turn=0, kind=EventKind.CALLED, text=text, tool=text, arguments=arguments or {text: text})
    verdict = Verdict(id=text, part="subgoal", met=True, evidence=1)
    return SimpleNamespace(
        **asdict(Some(id=episode_id, task_id="t" * 500)),
        plan=SimpleNamespace(task=task, limits=Limits(turns=9, tokens=9, completion_tokens=9, wall_s=9, turn_s=9)),
        messages=[{"role": "user", "content": f"{number} {text}"} for number in range(messages)],
        events=[event] * 3,
        timings=[TurnTiming(turn=0, phase="tool", start_s=1.0, end_s=2.0)] * 40,
        ids=array("I", [4_294_967_295] * ids),
        logprobs=array("f", [-1.2345678e-05] * ids),
        spans=[Span(start=0, length=ids, version=1)],
        server=text,
        finished=SimpleNamespace(
            stop=StopReason.ANSWER, error=text, reward=Reward(value=1.0, F=1.0, N=1.0, I=1.0, items=(verdict,) * 400)
        ),
    )


def phases_of(live: LiveEpisodes[Any]) -> Sequence[str]:
    """The phase of every episode, in order."""
    return [episode.phase for episode in live.all()]
