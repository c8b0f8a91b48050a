"""Where the time of episodes goes: how long they queue, and how long policy, tools, users and scoring take.

Kept step by step, of training and evaluation alike; told in the metrics (by stage) and to whoever looks (by tool).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from engine.telemetry import engine_metrics as keys
from engine.telemetry.durations import Durations
from engine.telemetry.metrics import MetricRow
from engine.types import Phase

_TOOLS = 256
"""A pack can have thousands of tools, and an agent can call any name: those called last are kept."""


class ToolRow(NamedTuple):
    """One tool, as it is told."""

    name: str
    calls: int
    """Answered and broken off."""
    refused: int
    """Answered with an error that the agent saw."""
    broken: int
    """Not answered: the simulator failed, or time was up."""
    p50_s: float
    p95_s: float


@dataclass(slots=True)
class _Tool:
    took: Durations = field(default_factory=lambda: Durations(128))
    refused: int = 0
    broken: int = 0


@dataclass(slots=True)
class Stages:
    """The stages of an engine process."""

    prompt_tokens: int = 0
    """Of all turns."""
    cached_tokens: int = 0
    """Of these, what a server did not have to compute."""
    _took: dict[Phase, Durations] = field(default_factory=lambda: {stage: Durations() for stage in keys.STAGES})
    _tools: OrderedDict[str, _Tool] = field(default_factory=OrderedDict)

    def took(self, stage: Phase, took_s: float) -> None:
        """An episode is through a stage."""
        self._took[stage].add(took_s)

    def prompted(self, tokens: int, cached: int) -> None:
        """A turn was sampled."""
        self.prompt_tokens += tokens
        self.cached_tokens += cached

    def called(self, tool: str, took_s: float, *, broken: bool) -> None:
        """A call of a tool is over."""
        known = self._tools.setdefault(tool, _Tool())
        self._tools.move_to_end(tool)
        known.took.add(took_s)
        known.broken += broken
        if len(self._tools) > _TOOLS:
            self._tools.popitem(last=False)

    def refused(self, tool: str) -> None:
        """The answer of the tool that was called just now is an error."""
        self._tools[tool].refused += 1

    def row(self) -> MetricRow:
        """The part of a metrics row that is known here."""
        row: MetricRow = {
            keys.PROMPT_TOKENS: self.prompt_tokens,
            keys.CACHED_TOKENS: self.cached_tokens,
        }
        for stage, took in self._took.items():
            names = keys.STAGES[stage]
            quantiles = took.quantiles_s(0.5, 0.95, 0.99)
            row |= dict(zip(names, (took.count, *quantiles), strict=True))
        return row

    def tools(self, most: int) -> Iterator[ToolRow]:
        """The tools that were called most."""
        busiest = sorted(self._tools.items(), key=lambda one: -one[1].took.count)
        for name, tool in busiest[:most]:
            yield ToolRow(name, tool.took.count, tool.refused, tool.broken, *tool.took.quantiles_s(0.5, 0.95))
