"""Metric keys, declared once; rows that use an undeclared key are an error.

A key is `area/name_unit`. Areas: time, episodes, groups, turns, tokens, reward, wait, loop, process, policy, adapter,
stream here; learner/* and the others of LEARNER.md section 1.7 in learner.metrics.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import orjson

from engine.errors import RunError


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


class MetricsFile:
    """Appends rows to a metrics.jsonl; each row is one write, so a reader never sees half of one that has ended."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._file.close()

    def write(self, row: Mapping[str, float | int]) -> None:
        """Append one row.

        Raises RunError for an undeclared key."""
        if unknown := row.keys() - METRICS.keys():
            raise RunError(
                f"undeclared metric {min(unknown)!r}: declare it once in engine.telemetry or learner.metrics"
            )
        self._file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY))
