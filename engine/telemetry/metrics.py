"""Metric keys, declared once; rows that use an undeclared key are an error.

A key is `area/name_unit`. Areas: time, episodes, outcome, groups, turns, tokens, stage, reward, wait, loop, process,
policy, adapter, stream in engine_metrics; learner (docs/learner.md 1.7) in learner_metrics; language models in
simulator_metrics. To add a metric, declare its key there and fill it where its row is made; docs/metrics.md is
generated from the declarations (`make pages`).

A key with a changing part (the name of an endpoint, a number of versions) is declared with a placeholder,
`endpoint.<endpoint>/requests_count`, and a row has it by `key_with`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple

from engine.errors import RunError
from engine.rundir.layout import JsonLines

MetricRow = dict[str, float | int]
"""One row of a metrics.jsonl file: metric key to number."""
MetricKind = Literal["gauge", "counter", "total"]
"""gauge: goes up and down; counter: grows from zero in every process; total: grows over the life of the run."""

METRIC_PLACEHOLDER = re.compile(r"<(\w+)>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One declared key."""

    key: str
    unit: str
    """1 for counts and other numbers without one."""
    meaning: str
    kind: MetricKind


METRICS: dict[str, Metric] = {}
"""By key, in the order of the declarations."""
_PATTERNS: list[tuple[re.Pattern[str], Metric]] = []


class Meant(NamedTuple):
    """What a key of a row stands for."""

    metric: Metric
    parts: Mapping[str, str]
    """What its placeholders are in this key."""


def declare(key: str, unit: str, meaning: str, kind: MetricKind = "gauge") -> str:
    """Declares a key, and returns it, so that a module names its keys as constants.

    Raises ValueError for one that is declared already."""
    if key in METRICS:
        raise ValueError(f"metric {key} is declared twice")
    METRICS[key] = metric = Metric(key=key, unit=unit, meaning=meaning, kind=kind)
    if METRIC_PLACEHOLDER.search(key):
        _PATTERNS.append((re.compile(METRIC_PLACEHOLDER.sub(r"(?P<\1>[^/]+)", re.escape(key))), metric))
    meant.cache_clear()
    return key


def key_with(key: str, **parts: str | int) -> str:
    """Returns a declared key with these values in place of its placeholders; others stay, for a second call."""
    return METRIC_PLACEHOLDER.sub(lambda found: str(parts.get(found[1], found[0])), key)


@cache
def meant(key: str) -> Meant | None:
    """Returns what a key of a row stands for; None for one that is not declared."""
    if (metric := METRICS.get(key)) is not None and not METRIC_PLACEHOLDER.search(key):
        return Meant(metric, {})
    for pattern, metric in _PATTERNS:
        if (found := pattern.fullmatch(key)) is not None and not METRIC_PLACEHOLDER.search(key):
            return Meant(metric, found.groupdict())
    return None


class MetricsFile(JsonLines):
    """A metrics.jsonl: rows of declared keys."""

    def append(self, row: Mapping[str, float | int]) -> None:
        """Write one row.

        Raises RunError for an undeclared key, and if the disk does not take it."""
        if unknown := [key for key in row if meant(key) is None]:
            raise RunError(f"undeclared metric {min(unknown)!r}: declare it once in engine.telemetry")
        super().append(row)
