"""Metric keys, declared once; rows that use an undeclared key are an error.

A key is `area/name_unit`. Areas: time, episodes, outcome, groups, turns, tokens, stage, reward, wait, loop, process,
policy, adapter, stream in engine_metrics; learner (docs/learner.md 1.7) in learner_metrics; language models in
simulator_metrics.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from engine.errors import RunError
from engine.rundir.layout import JsonLines

Kind = Literal["gauge", "counter", "total"]
"""gauge: goes up and down; counter: grows from zero in every process; total: grows over the life of the run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One declared key."""

    key: str
    unit: str
    """1 for counts and other numbers without one."""
    meaning: str
    kind: Kind


METRICS: dict[str, Metric] = {}


def declare(key: str, unit: str, meaning: str, kind: Kind = "gauge") -> str:
    """Declare a key; returns it, so that a module names its keys as constants."""
    if METRICS.setdefault(key, metric := Metric(key=key, unit=unit, meaning=meaning, kind=kind)) != metric:
        raise ValueError(f"metric {key} is declared twice, differently")
    return key


class MetricsFile(JsonLines):
    """A metrics.jsonl: rows of declared keys."""

    def append(self, row: Mapping[str, float | int]) -> None:
        """Write one row.

        Raises RunError for an undeclared key, and if the disk does not take it."""
        if unknown := row.keys() - METRICS.keys():
            raise RunError(f"undeclared metric {min(unknown)!r}: declare it once in engine.telemetry")
        super().append(row)
