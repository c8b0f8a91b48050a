"""Calls that go to an endpoint together: who goes next is decided by a pure queue, the rest is waiting and sending.

A batch leaves when it is full, or when its first call has waited long enough. Owners take turns, so that one that asks
much does not keep the others waiting. The request belongs to the batcher, not to a caller: who is cancelled leaves its
batch, and only a batch that everybody left is given up.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import anyio

from engine.errors import EpisodeError, boundary
from engine.llm.question import Completed, Prompt
from engine.telemetry.durations import Durations


class EndpointError(EpisodeError):
    """An endpoint did not answer, after all attempts; whoever asked makes it the fault of the role that was played."""


@dataclass(slots=True, eq=False)
class Call:
    """One prompt that somebody waits for."""

    owner: str
    prompt: Prompt
    answer: asyncio.Future[Completed]
    flight: Flight | None = None


@dataclass(slots=True, eq=False)
class Flight:
    """One batch on its way."""

    calls: list[Call]
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    _left: int = 0

    def leave(self) -> None:
        """A caller does not wait any more; each says so once."""
        self._left += 1
        if self._left == len(self.calls):
            self.scope.cancel()


class Queue:
    """Calls that wait, in the order in which they came and by owner."""

    def __init__(self, size: int, wait_s: float) -> None:
        self._size, self._wait_s = size, wait_s
        self._since: dict[Call, float] = {}
        self._owners: OrderedDict[str, dict[Call, None]] = OrderedDict()
        self.waits, self.batches = Durations(), Counter[int]()
        """How long calls waited for their batch, and batches by size, up to the next power of two."""

    def __len__(self) -> int:
        return len(self._since)

    def put(self, call: Call, now_s: float) -> None:
        """`call` waits from now on."""
        self._since[call] = now_s
        self._owners.setdefault(call.owner, {})[call] = None

    def drop(self, call: Call) -> None:
        """`call` does not wait any more, if it did."""
        if self._since.pop(call, None) is not None:
            mine = self._owners[call.owner]
            del mine[call]
            if not mine:
                del self._owners[call.owner]

    @property
    def due_s(self) -> float | None:
        """When the next batch leaves although it is not full; None if nobody waits."""
        return next(iter(self._since.values())) + self._wait_s if self._since else None

    def take(self, now_s: float, room: int) -> list[Call]:
        """The calls of the next batch, at most `room`; none if it should not leave yet."""
        due_s = self.due_s
        if due_s is None or (len(self) < self._size and now_s < due_s):
            return []
        batch: list[Call] = []
        while self._owners and len(batch) < min(self._size, room):
            owner, calls = next(iter(self._owners.items()))
            batch.append(call := next(iter(calls)))
            self.waits.add(now_s - self._since[call])
            self.drop(call)
            if owner in self._owners:
                self._owners.move_to_end(owner)
        if batch:
            self.batches[1 << (len(batch) - 1).bit_length()] += 1
        return batch


Send = Callable[[Sequence[Prompt]], Awaitable[Sequence[Completed | EndpointError]]]


class Batcher:
    """Brings calls to `send` in batches, `concurrency` of them at once at most."""

    def __init__(self, queue: Queue, send: Send, *, concurrency: int) -> None:
        self._queue, self._send, self._room = queue, send, concurrency
        self._timer: asyncio.TimerHandle | None = None
        # Not a task group: it would wrap every error of the block that it is open in.
        self._flying: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Give up what is on its way."""
        for task in self._flying:
            task.cancel()
        if self._flying:
            await asyncio.wait(self._flying)

    async def call(self, owner: str, prompt: Prompt) -> Completed:
        """The answer to one prompt.

        Raises EndpointError if there is none."""
        call = Call(owner, prompt, asyncio.get_running_loop().create_future())
        self._queue.put(call, time.monotonic())
        self._pump()
        try:
            return await call.answer
        finally:
            # Cancelled while it waits, or while it flies; after an answer both are without effect.
            self._queue.drop(call)
            if call.flight is not None:
                call.flight.leave()

    def _pump(self) -> None:
        """Send what is due, and look again when the next batch is."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._room and (calls := self._queue.take(time.monotonic(), self._room)):
            self._room -= len(calls)
            task = asyncio.get_running_loop().create_task(self._fly(calls))
            self._flying.add(task)
            task.add_done_callback(self._flying.discard)
        if self._room and (due_s := self._queue.due_s) is not None:
            wait_s = max(0.0, due_s - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._pump)

    async def _fly(self, calls: list[Call]) -> None:
        flight = Flight(calls)
        for call in calls:
            call.flight = flight
        try:
            with flight.scope:
                async with boundary(EndpointError, "endpoint"):
                    answers = await self._send([call.prompt for call in calls])
                self._land(calls, answers)
        except EndpointError as error:
            # One for each: an exception that several tasks raise collects all their frames.
            self._land(calls, [EndpointError(str(error)) for _ in calls])
        finally:
            self._room += len(calls)
            self._pump()

    def _land(self, calls: Sequence[Call], answers: Sequence[Completed | EndpointError]) -> None:
        for call, answer in zip(calls, answers, strict=True):
            if call.answer.done():
                continue
            if isinstance(answer, EndpointError):
                call.answer.set_exception(answer)
            else:
                call.answer.set_result(answer)
