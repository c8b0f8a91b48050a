"""Seeded faults of the mock policy server: what goes wrong, and how often."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from enum import StrEnum

from engine.errors import ConfigError


class Fault(StrEnum):
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


@dataclass(slots=True, kw_only=True)
class Faults:
    """Draws the fault of each request; the same seed gives the same sequence."""

    rates: dict[Fault, float] = field(default_factory=dict)
    """Probability of each fault; the rest of the requests succeed."""
    seed: int = 0
    pause_on_load_s: float = 0.0
    """Every request in flight stands still for so long when an adapter is loaded."""
    abort_on_load: bool = False
    """Every request in flight is aborted when an adapter is loaded."""
    drawn: dict[Fault, int] = field(default_factory=dict)
    _rng: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)

    @classmethod
    def rates_of(cls, text: str) -> dict[Fault, float]:
        """Read "error=0.01,reset=0.005".

        Raises ConfigError naming the part that is wrong."""
        rates = {}
        for part in filter(None, text.split(",")):
            name, _, rate = part.partition("=")
            try:
                rates[Fault(name.strip())] = float(rate)
            except ValueError:
                known = ", ".join(Fault)
                raise ConfigError(f"--faults {part!r}: write name=probability; names are {known}") from None
        if sum(rates.values()) > 1:
            raise ConfigError(f"--faults {text!r}: the probabilities add up to more than 1")
        return rates

    def draw(self) -> Fault | None:
        """The fault of the next request, or None."""
        at = self._rng.random()
        for fault, rate in self.rates.items():
            at -= rate
            if at < 0:
                self.drawn[fault] = self.drawn.get(fault, 0) + 1
                return fault
        return None
