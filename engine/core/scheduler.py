"""How much is in flight: groups by the group budget, episodes by live slots.

Invariants: *emit-once* (each admitted position is handed over exactly once, and only whole) and the staleness bound:
``admitted - trained - dropped <= (max_staleness + 1) x groups_per_step``, where a trained group counts only once its
adapter is current on every server, so that nothing is born stale. The two budgets are separate: live slots are freed
when an episode ends, so stragglers never idle the server.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from itertools import islice

import anyio
import anyio.lowlevel

from engine.types import Episode

_AT_ONCE = 32
"""Episodes started before the loop gets a turn (invariant no-block): a start costs most of a millisecond."""

Start = tuple[int, int]
"""An episode to start: its group's position, its index in the group."""


@dataclass(slots=True)
class Admission:
    """Group positions admitted and freed; pure."""

    budget: int
    written: set[int]
    """Positions that the stream holds already: never admitted again."""
    in_flight: set[int] = field(default_factory=set)
    trained: int = 0
    dropped: int = 0
    closed: bool = False
    """Nothing more is admitted: the last step is trained."""
    _next: int = 0

    @property
    def outstanding(self) -> int:
        """Groups that hold a place of the budget."""
        return len(self.written) + len(self.in_flight) - self.trained - self.dropped

    def freed(self, trained: int, dropped: int) -> None:
        """The learner's counts; a decrease (it restarted and catches up) is ignored."""
        self.trained, self.dropped = max(self.trained, trained), max(self.dropped, dropped)

    def admit(self) -> int | None:
        """The next position, or None while the budget is full."""
        if self.closed or self.outstanding >= self.budget:
            return None
        while self._next in self.written:
            self._next += 1
        self.in_flight.add(self._next)
        self._next += 1
        return self._next - 1

    def finished(self, position: int) -> None:
        """The stream acknowledged this position."""
        self.in_flight.remove(position)
        self.written.add(position)


@dataclass(slots=True)
class LiveSlots:
    """How many episodes may be live; it grows to `most` while the policy servers have room."""

    limit: int
    most: int

    def adapt(self, live: int, *, room: bool) -> None:
        """Grow by a quarter when the servers have room and the slots are used; never shrink."""
        if room and live >= self.limit:
            self.limit = min(self.most, self.limit + max(8, self.limit // 4))


@dataclass(slots=True)
class Scheduler:
    """Starts episodes while there is room, and hands over whole groups."""

    admission: Admission
    slots: LiveSlots
    group_size: int
    play: Callable[[int, int], Awaitable[Episode]]
    """Run episode `index` of the group at `position`."""
    emit: Callable[[int, list[Episode]], Awaitable[None]]
    """Write a whole group; returns when it is acknowledged."""
    clock: Callable[[], float]
    live: int = 0
    started: int = 0
    draining: bool = False
    _waited_s: float = 0.0
    _looked_s: float = 0.0
    _blocked: bool = False
    _waiting: deque[Start] = field(default_factory=deque)
    _groups: dict[int, dict[int, Episode]] = field(default_factory=dict)
    _wake: anyio.Event = field(default_factory=anyio.Event)

    def __repr__(self) -> str:
        state = f"{self.live}/{self.slots.limit} live, {len(self._waiting)} waiting"
        return f"<Scheduler {state} | {self.admission.outstanding}/{self.admission.budget} groups>"

    @property
    def learner_wait_s(self) -> float:
        """Seconds that admission waited for the learner: time with a full budget x the share of free live slots."""
        self._account()
        return self._waited_s

    def _account(self) -> None:
        now = self.clock()
        if self._blocked:
            self._waited_s += (now - self._looked_s) * max(0.0, 1.0 - self.live / self.slots.limit)
        self._looked_s = now

    def wake(self) -> None:
        """Something changed: look again."""
        self._wake.set()

    async def run(self) -> None:
        """Start episodes until drained; cancel to stop at once."""
        try:
            async with anyio.create_task_group() as players:
                while not (self.draining and not self._groups):
                    self._wake = anyio.Event()
                    starts = self.transition()
                    for start in starts:
                        players.start_soon(self._play_on, start)
                    if len(starts) < _AT_ONCE:
                        await self._wake.wait()
                    else:
                        await anyio.lowlevel.checkpoint()
        finally:
            self._account()
            self.live, self._blocked = 0, False

    def transition(self) -> Collection[Start]:
        """What to start now, a few at a time: admits groups and takes live slots for it."""
        return list(islice(iter(self._next, None), _AT_ONCE))

    def _next(self) -> Start | None:
        """The next episode, and a live slot for it; None while there is no room."""
        self._account()
        if self.live >= self.slots.limit or not (self._waiting or self._admit()):
            return None
        self.live += 1
        self.started += 1
        return self._waiting.popleft()

    def _admit(self) -> bool:
        stopping = self.draining or self.admission.closed
        position = None if stopping else self.admission.admit()
        self._blocked = position is None and not stopping
        if position is None:
            return False
        self._groups[position] = {}
        self._waiting.extend((position, index) for index in range(self.group_size))
        return True

    async def _play_on(self, start: Start | None) -> None:
        """One episode after the other while there is room: a task for each is not free."""
        while start is not None:
            await self._episode(*start)
            await anyio.lowlevel.checkpoint()
            start = self._next()

    async def _episode(self, position: int, index: int) -> None:
        episode = await self.play(position, index)
        self._account()
        self.live -= 1
        members = self._groups[position]
        members[index] = episode
        if len(members) == self.group_size:
            # Somebody else may have the slot while the group is written.
            self.wake()
            await self.emit(position, [members[index] for index in range(self.group_size)])
            self.admission.finished(position)
            del self._groups[position]
            self.wake()
