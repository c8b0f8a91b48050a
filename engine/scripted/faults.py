"""Seeded faults of the mock policy server and of the scripted endpoint: what goes wrong, and how often."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from engine.errors import ConfigError


class ServerFault(StrEnum):
    """One way in which a request can fail."""

    ERROR = "error"
    """HTTP 500."""
    BUSY = "busy"
    """HTTP 503, `The request queue is full.`"""
    RESET = "reset"
    """The connection is closed without an answer."""
    GARBAGE = "garbage"
    """HTTP 200 with something that is not JSON."""
    HANG = "hang"
    """No answer, ever."""
    ABORT = "abort"
    """HTTP 200, finish reason `abort`, half of the output."""
    TRUNCATE = "truncate"
    """HTTP 200 with one log-probability too few."""
    LIMITED = "limited"
    """HTTP 429, `Retry-After: 1`."""
    MALFORMED = "malformed"
    """Structured output that is cut in half or breaks its schema; drawn once per item, not per request."""
    DOWN = "down"
    """HTTP 503 to everyone for a while; planned (`FaultWindow`), never drawn."""


_ANY_SERVER = (ServerFault.ERROR, ServerFault.BUSY, ServerFault.RESET, ServerFault.GARBAGE, ServerFault.HANG)
POLICY_FAULTS = (*_ANY_SERVER, ServerFault.ABORT, ServerFault.TRUNCATE)
ENDPOINT_FAULTS = (*_ANY_SERVER, ServerFault.LIMITED, ServerFault.MALFORMED)


@dataclass(slots=True, kw_only=True)
class Faults:
    """Draws the fault of each request; the same seed gives the same sequence."""

    rates: dict[ServerFault, float] = field(default_factory=dict)
    """Probability of each fault; the rest of the requests succeed."""
    seed: int = 0
    pause_on_load_s: float = 0.0
    """Every request in flight stands still for so long when an adapter is loaded."""
    abort_on_load: bool = False
    """Every request in flight is aborted when an adapter is loaded."""
    drawn: dict[ServerFault, int] = field(default_factory=dict)
    _rng: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)

    @classmethod
    def rates_of(cls, text: str, known: Sequence[ServerFault] = POLICY_FAULTS) -> dict[ServerFault, float]:
        """Read "error=0.01,reset=0.005"; `known` are the faults that the server can play.

        Raises ConfigError naming the part that is wrong."""
        rates = {}
        for part in filter(None, text.split(",")):
            name, _, rate = part.partition("=")
            try:
                rates[_one_of(known, name.strip())] = float(rate)
            except ValueError:
                names = ", ".join(known)
                raise ConfigError(f"--faults {part!r}: write name=probability; names are {names}") from None
        if sum(rates.values()) > 1:
            raise ConfigError(f"--faults {text!r}: the probabilities add up to more than 1")
        return rates

    def draw(self) -> ServerFault | None:
        """The fault of the next request, or None."""
        at = self._rng.random()
        for fault, rate in self.rates.items():
            at -= rate
            if at < 0:
                self.drawn[fault] = self.drawn.get(fault, 0) + 1
                return fault
        return None


def _one_of(known: Sequence[ServerFault], name: str) -> ServerFault:
    return known[known.index(ServerFault(name))]


@dataclass(frozen=True, slots=True)
class FaultWindow:
    """A time during which a server is down, counted from its first request, however long its client takes to start."""

    start_s: float
    seconds: float

    @classmethod
    def of(cls, text: str) -> FaultWindow:
        """Read "START:SECONDS".

        Raises ConfigError for anything else."""
        start, _, seconds = text.partition(":")
        try:
            return cls(float(start), float(seconds))
        except ValueError:
            raise ConfigError(f"--down {text!r}: write START:SECONDS, in seconds after the first request") from None

    def covers(self, at_s: float) -> bool:
        """Whether the server is down `at_s` after its first request."""
        return self.start_s <= at_s < self.start_s + self.seconds
