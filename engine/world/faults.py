"""Fault injection at the tool boundary, outside the mapping: what goes wrong never becomes an answer that others get.

Every fault of an episode follows from (seed, task, episode seed, number of the call): the same seed gives the same
faults. `world.faults` of the configuration says which, as ``get_order: timeout=0.01, error=0.02; *: latency_s=0.1``.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, fields

import anyio

from engine.errors import ConfigError, ToolError
from engine.seams import Session, World
from engine.task import Task
from engine.types import Json, Observation, ToolCall

EVERY = "*"
"""In place of a tool's name: every tool that has no profile of its own."""
GARBAGE = "\ufffd<html>502</html>{"
"""What a garbled answer reads like: no JSON, and not what the tool said."""


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

    def __post_init__(self) -> None:
        chances = (self.timeout, self.error, self.garbage)
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


class FaultyWorld:
    """A world whose tools misbehave by profile; tools without one work, unless there is one for every tool."""

    def __init__(self, world: World, profiles: Mapping[str, FaultProfile], seed: int) -> None:
        self._world = world
        self._profiles = profiles
        self._seed = seed

    async def open(self, task: Task, seed: int) -> FaultySession:
        """A session of the inner world, with faults drawn for this episode."""
        draws = random.Random(f"{self._seed}/{task.id}/{seed}")
        return FaultySession(await self._world.open(task, seed), self._profiles, draws)


class FaultySession:
    """One episode's view of a faulty world."""

    def __init__(self, session: Session, profiles: Mapping[str, FaultProfile], draws: random.Random) -> None:
        self._session = session
        self._profiles = profiles
        self._draws = draws

    async def call(self, call: ToolCall) -> Observation:
        """Answer one call, late, garbled or not at all.

        Raises ToolError where the profile says that the simulator failed."""
        profile = self._profiles.get(call.name, self._profiles.get(EVERY))
        if profile is None:
            return await self._session.call(call)
        delay, draw = self._draws.expovariate(1), self._draws.random()
        await anyio.sleep(profile.latency_s * delay)
        if draw < profile.timeout:
            await anyio.sleep_forever()
        if draw < profile.timeout + profile.error:
            raise ToolError(f"{call.name}: injected fault")
        observation = await self._session.call(call)
        garbled = draw < profile.timeout + profile.error + profile.garbage
        return Observation(content=GARBAGE, ok=observation.ok) if garbled else observation

    async def close(self) -> Json:
        """End the inner session; returns the final state."""
        return await self._session.close()
