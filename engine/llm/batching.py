"""Calls that go to an endpoint together: who goes next is decided by a pure queue, the rest is waiting and sending.

A batch leaves when it is full, or when its first call has waited long enough. Owners take turns, so that one that asks
much does not keep the others waiting. The request belongs to the batcher, not to a caller: who is cancelled leaves its
batch, and only a batch that everybody left is given up.
"""

from __future__ import annotations

import math
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import anyio
from anyio.abc import TaskGroup

from engine.errors import EpisodeError, SynthError, boundary, owned_tasks
from engine.llm.question import ChatPrompt, Completed
from engine.telemetry.durations import Durations


class EndpointError(EpisodeError):
    """An endpoint did not answer, after all attempts; whoever asked makes it the fault of the role that was played."""


@dataclass(slots=True, eq=False)
class QueuedCall:
    """One prompt that somebody waits for."""

    owner: str
    prompt: ChatPrompt
    flight: Flight | None = None
    _outcome: Completed | SynthError | None = None
    _resolved: anyio.Event = field(default_factory=anyio.Event)

    @property
    def waiting(self) -> bool:
        """Whether it has no outcome yet."""
        return self._outcome is None

    def resolve(self, outcome: Completed | SynthError) -> None:
        """Let who waits go on, with an answer or an error."""
        self._outcome = outcome
        self._resolved.set()

    async def answer(self) -> Completed:
        """Wait for the outcome.

        Raises the error if it is one."""
        await self._resolved.wait()
        assert self._outcome is not None
        if isinstance(self._outcome, SynthError):
            raise self._outcome
        return self._outcome


@dataclass(slots=True, eq=False)
class Flight:
    """One batch on its way."""

    calls: list[QueuedCall]
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    _left: int = 0

    def leave(self) -> None:
        """A caller does not wait any more; each says so once."""
        self._left += 1
        if self._left == len(self.calls):
            self.scope.cancel()

    def fail(self, error: SynthError) -> None:
        """Tell every caller that has no answer yet what went wrong.

        An EpisodeError is the endpoint's failure here, whatever boundary it crossed before, and each caller gets one
        of its own: an exception that several tasks raise collects all their frames. What ends the run is passed on."""
        for call in self.calls:
            if call.waiting:
                call.resolve(EndpointError(str(error)) if isinstance(error, EpisodeError) else error)


class Queue:
    """Calls that wait, in the order in which they came and by owner."""

    def __init__(self, size: int, wait_s: float) -> None:
        self._size, self._wait_s = size, wait_s
        self._since: dict[QueuedCall, float] = {}
        self._owners: OrderedDict[str, dict[QueuedCall, None]] = OrderedDict()
        self.waits, self.batches = Durations(), Counter[int]()
        """How long calls waited for their batch, and batches by size, up to the next power of two."""

    def __len__(self) -> int:
        return len(self._since)

    def put(self, call: QueuedCall, now_s: float) -> None:
        """`call` waits from now on."""
        self._since[call] = now_s
        self._owners.setdefault(call.owner, {})[call] = None

    def drop(self, call: QueuedCall) -> None:
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

    def take(self, now_s: float, room: int) -> list[QueuedCall]:
        """The calls of the next batch, at most `room`; none if it should not leave yet."""
        due_s = self.due_s
        if due_s is None or (len(self) < self._size and now_s < due_s):
            return []
        batch: list[QueuedCall] = []
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


Send = Callable[[Sequence[ChatPrompt]], Awaitable[Sequence[Completed | EndpointError]]]


class Batcher:
    """Brings calls to `send` in batches, `concurrency` of them at once at most; open it with `async with`.

    Every call is resolved: with its answer, with what `send` raised (classified by `errors.boundary`), or with an
    EndpointError at the end of the block. A fault of the batcher itself ends the block."""

    def __init__(self, queue: Queue, send: Send, *, concurrency: int) -> None:
        self._queue, self._send, self._room = queue, send, concurrency
        self._owned = owned_tasks()
        self._tasks: TaskGroup | None = None
        self._due_s: float | None = None
        """When the next batch leaves although it is not full; None if none waits, or there is no room for it."""
        self._due_changed = anyio.Event()

    async def __aenter__(self) -> Self:
        self._tasks = await self._owned.__aenter__()
        self._tasks.start_soon(self._keep_time, self._tasks)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> bool | None:
        """Give up what waits and what is on its way."""
        self._tasks = None
        while len(self._queue):
            Flight(self._queue.take(math.inf, len(self._queue))).fail(_closed())
        return await self._owned.__aexit__(kind, error, tb)

    async def call(self, owner: str, prompt: ChatPrompt) -> Completed:
        """The answer to one prompt.

        Raises EndpointError if there is none."""
        if self._tasks is None:
            raise _closed()
        call = QueuedCall(owner, prompt)
        self._queue.put(call, time.monotonic())
        self._depart(self._tasks)
        try:
            return await call.answer()
        finally:
            # Cancelled while it waits, or while it flies; after an answer both are without effect.
            self._queue.drop(call)
            if call.flight is not None:
                call.flight.leave()

    def _depart(self, tasks: TaskGroup) -> None:
        """Send every batch that is full or due."""
        while self._room and (calls := self._queue.take(time.monotonic(), self._room)):
            self._room -= len(calls)
            flight = Flight(calls)
            for call in calls:
                call.flight = flight
            tasks.start_soon(self._fly, flight, tasks)
        due_s = self._queue.due_s if self._room else None
        if due_s != self._due_s:
            self._due_s = due_s
            self._due_changed.set()

    async def _keep_time(self, tasks: TaskGroup) -> None:
        """Send what waits for others once it has waited long enough, until cancelled."""
        while True:
            self._due_changed = anyio.Event()
            wait_s = math.inf if self._due_s is None else self._due_s - time.monotonic()
            with anyio.move_on_after(wait_s):
                await self._due_changed.wait()
            self._depart(tasks)

    async def _fly(self, flight: Flight, tasks: TaskGroup) -> None:
        try:
            with flight.scope:
                async with boundary(EndpointError, "endpoint"):
                    answers = await self._send([call.prompt for call in flight.calls])
                for call, answer in zip(flight.calls, answers, strict=True):
                    call.resolve(answer)
        except SynthError as error:
            flight.fail(error)
        finally:
            # Whoever has no outcome yet is told of the end of the block; that includes a fault of ours, which ends it.
            flight.fail(_closed())
            self._room += len(flight.calls)
            self._depart(tasks)


def _closed() -> EndpointError:
    return EndpointError("the endpoint was closed before it answered")
