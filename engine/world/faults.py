"""Fault injection at the tool boundary, outside the mapping: what goes wrong never becomes an answer that others get.

Every fault of an episode follows from (seed, task, episode seed, number of the call): the same seed gives the same
faults. `world.faults` of the configuration says which, as ``get_order: timeout=0.01, flaky=0.2; *: latency_s=0.1``.
Each is a line of the run's faults.jsonl, to be held against what came of it: the episode by task and seed, as a world
knows it, and the number of the call. An episode that was played again, by a run that was killed or in a second
evaluation of its task, has its lines again.

`timeout` and `error` are failures of the simulator: they end the episode, masked. `flaky` and `garbage` belong to the
world: the agent sees them, as it would those of a real API, and is scored on what it makes of them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Literal

import anyio

from engine.core.seams import Session, World
from engine.errors import ConfigError, ToolError
from engine.rundir.event_lines import EventLines
from engine.schema.canonical import canonical
from engine.task import Task
from engine.types import Json, Observation, ToolCall
from engine.world.admission import refused
from engine.world.states import Key, key_of

ToolFault = Literal["timeout", "error", "garbage", "flaky"]
OnFault = Callable[[Task, int, int, str, ToolFault], None]
"""Hears of a fault: task, seed of the episode, number of the call in it (from 0), tool, fault."""

EVERY = "*"
"""In place of a tool's name: every tool that has no profile of its own."""
GARBAGE = "\ufffd<html>502</html>{"
"""What a garbled answer reads like: no JSON, and not what the tool said."""
UNAVAILABLE = refused("temporarily unavailable")
"""What a flaky tool answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultProfile:
    """How one tool misbehaves; probabilities per call, in [0, 1] and together at most 1."""

    latency_s: float = 0.0
    """Mean of an exponentially distributed delay of every call, in seconds."""
    timeout: float = 0.0
    """The call hangs until its deadline cancels it."""
    error: float = 0.0
    """The simulator fails: ToolError."""
    garbage: float = 0.0
    """The call is executed, its answer garbled."""
    flaky: float = 0.0
    """The call is not executed, and answered with ok false; the same call works the next time that it is made."""

    def __post_init__(self) -> None:
        chances = (self.timeout, self.error, self.garbage, self.flaky)
        if not 0 <= self.latency_s < math.inf or min(chances) < 0 or not sum(chances) <= 1:
            raise ValueError(
                "latency_s is a finite number of at least 0; the probabilities are at least 0 and together at most 1"
            )


def profiles_of(text: str) -> dict[str, FaultProfile]:
    """The profiles by tool that `world.faults` gives; empty text gives none.

    Raises ConfigError naming the part that is wrong."""
    profiles: dict[str, FaultProfile] = {}
    for part in filter(str.strip, text.split(";")):
        name, _, faults = (word.strip() for word in part.partition(":"))
        try:
            if not name or not faults or name in profiles:
                raise ValueError(f"write `tool: name=number, ...`, once per tool ({EVERY} is every other one)")
            profiles[name] = FaultProfile(**_numbers(faults))
        except ValueError as error:
            raise ConfigError(f"world.faults: {part.strip()!r}: {error}") from None
    return profiles


def _numbers(faults: str) -> dict[str, float]:
    known, numbers = [field.name for field in fields(FaultProfile)], {}
    for fault in faults.split(","):
        name, _, number = (word.strip() for word in fault.partition("="))
        if name not in known:
            raise ValueError(f"there is no fault {name!r}; there are {', '.join(known)}")
        if name in numbers:
            raise ValueError(f"{name} is given twice")
        try:
            numbers[name] = float(number)
        except ValueError:
            raise ValueError(f"{name} needs a number, not {number!r}") from None
    return numbers


def unheard(*_: object) -> None:
    """Nobody keeps an account."""


class FaultyWorld:
    """A world whose tools misbehave by profile; tools without one work, unless there is one for every tool."""

    def __init__(
        self, world: World, profiles: Mapping[str, FaultProfile], seed: int, on_fault: OnFault = unheard
    ) -> None:
        self._world = world
        self._profiles = profiles
        self._seed = seed
        self._on_fault = on_fault

    async def open(self, task: Task, seed: int) -> FaultySession:
        """A session of the inner world, with faults drawn for this episode."""

        def injected(number: int, tool: str, fault: ToolFault) -> None:
            self._on_fault(task, seed, number, tool, fault)

        return FaultySession(
            session=await self._world.open(task, seed),
            profiles=self._profiles,
            draws=random.Random(f"{self._seed}/{task.id}/{seed}"),
            injected=injected,
        )


@dataclass(slots=True, kw_only=True, eq=False)
class FaultySession:
    """One episode's view of a faulty world."""

    session: Session
    profiles: Mapping[str, FaultProfile]
    draws: random.Random
    injected: Callable[[int, str, ToolFault], None]
    _number: int = 0
    _refused: set[Key] = field(default_factory=set)
    """Calls that found their tool unavailable: made again, they work."""

    async def call(self, call: ToolCall) -> Observation:
        """Answer one call, late, garbled, with a refusal that passes, or not at all.

        Raises ToolError where the profile says that the simulator failed."""
        number, self._number = self._number, self._number + 1
        profile = self.profiles.get(call.name, self.profiles.get(EVERY))
        if profile is None:
            return await self.session.call(call)
        delay, fault = self.draws.expovariate(1), self._drawn(profile, self.draws.random(), call)
        await anyio.sleep(profile.latency_s * delay)
        if fault is not None:
            self.injected(number, call.name, fault)
        if fault == "timeout":
            await anyio.sleep_forever()
        if fault == "error":
            raise ToolError(f"{call.name}: injected fault")
        if fault == "flaky":
            return UNAVAILABLE
        observation = await self.session.call(call)
        return observation if fault is None else Observation(content=GARBAGE, ok=observation.ok)

    def _drawn(self, profile: FaultProfile, draw: float, call: ToolCall) -> ToolFault | None:
        """The fault of this call, of a draw in [0, 1)."""
        fault, key = _fault(profile, draw), _key(call)
        if key in self._refused:
            self._refused.remove(key)
            return None
        if fault == "flaky":
            if key is None:
                return None
            self._refused.add(key)
        return fault

    async def close(self) -> Json:
        """End the inner session; returns the final state."""
        return await self.session.close()


@dataclass(frozen=True, slots=True)
class FaultLines:
    """Takes faults as they happen, for faults.jsonl."""

    lines: EventLines
    clock: Callable[[], float]

    def add(self, task: Task, seed: int, call: int, tool: str, fault: ToolFault) -> None:
        """One fault happened now (OnFault)."""
        row = {"task": task.id, "seed": seed, "call": call, "tool": tool, "fault": fault, "at_s": self.clock()}
        self.lines.append(row)


def _key(call: ToolCall) -> Key | None:
    """What makes two calls the same; None for arguments that are no JSON on the wire, which no world takes."""
    try:
        return key_of(ToolCall(name=call.name, arguments=canonical(call.arguments)))
    except ValueError:
        return None


def _fault(profile: FaultProfile, draw: float) -> ToolFault | None:
    chances: tuple[tuple[ToolFault, float], ...] = (
        ("timeout", profile.timeout),
        ("error", profile.error),
        ("garbage", profile.garbage),
        ("flaky", profile.flaky),
    )
    upto = 0.0
    for fault, chance in chances:
        upto += chance
        if draw < upto:
            return fault
    return None
