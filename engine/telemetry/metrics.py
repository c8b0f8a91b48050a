"""Metric keys, declared once; rows that use an undeclared key are an error.

A key is `area/name_unit`. Areas: time, episodes, groups, turns, tokens, reward, wait, loop, process, policy, adapter,
stream here; learner/* and the others of LEARNER.md section 1.7 in learner.metrics.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from engine.errors import RunError
from engine.rundir import JsonLines


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One declared key."""

    key: str
    unit: str
    meaning: str


METRICS: dict[str, Metric] = {}


def declare(key: str, unit: str, meaning: str) -> str:
    """Declare a key; returns it, so that a module names its keys as constants."""
    if METRICS.setdefault(key, metric := Metric(key=key, unit=unit, meaning=meaning)) != metric:
        raise ValueError(f"metric {key} is declared twice, differently")
    return key


class MetricsFile(JsonLines):
    """A metrics.jsonl: rows of declared keys."""

    def append(self, row: Mapping[str, float | int]) -> None:
        """Write one row.

        Raises RunError for an undeclared key, and if the disk does not take it."""
        if unknown := row.keys() - METRICS.keys():
            raise RunError(
                f"undeclared metric {min(unknown)!r}: declare it once in engine.telemetry or learner.metrics"
            )
        super().append(row)
