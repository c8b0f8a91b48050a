"""Every metric there is, as one table, and what a key that stands in a row means.

A key with a changing part (the name of an endpoint, a number of versions) is declared when a row first has it. In the
table it stands once, with a placeholder: `endpoint.<endpoint>/requests_count`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import NamedTuple

from engine.telemetry import engine_metrics, learner_metrics
from engine.telemetry import simulator_metrics as simulators
from engine.telemetry.metrics import METRICS, Metric

_PLACEHOLDER = re.compile(r"<(\w+)>")


class Meant(NamedTuple):
    """What a key stands for."""

    metric: Metric
    parts: Mapping[str, str]
    """What its placeholders are in this key."""


def _changing() -> Iterator[str]:
    """Declare what is otherwise declared when a row has it."""
    for what in simulators.ENDPOINT:
        yield simulators.endpoint_key("<endpoint>", what)
    for what in simulators.ENDPOINT_NOW:
        yield simulators.endpoint_now_key("<endpoint>", what)
    yield simulators.batch_key("<endpoint>", "<size>")
    for kind in simulators.FAULTS:
        yield simulators.fault_key("<endpoint>", kind)
    for part in simulators.PARTS:
        for what in simulators.PART:
            yield simulators.part_key(part, what)
        yield simulators.refused_key(part, "<kind>")
    for how in simulators.MAPPING:
        yield simulators.mapping_key(how)
    yield learner_metrics.staleness_key("<versions>")
    for key in learner_metrics.PER_STALENESS:
        yield learner_metrics.at_staleness(key, "<versions>")


_CHANGING = tuple(METRICS[key] for key in _changing())
_PATTERNS = tuple(
    (re.compile(_PLACEHOLDER.sub(r"(?P<\1>[^/]+)", re.escape(metric.key))), metric)
    for metric in _CHANGING
    if _PLACEHOLDER.search(metric.key)
)
_LEARNER = learner_metrics.STEP.partition("/")[0]


@cache
def meant(key: str) -> Meant | None:
    """What `key` stands for; None for one that no version of this table has."""
    for pattern, metric in _PATTERNS:
        if (found := pattern.fullmatch(key)) is not None:
            return Meant(metric, found.groupdict())
    return Meant(METRICS[key], {}) if key in METRICS else None


def prometheus_name(metric: Metric) -> str:
    """`area/name_unit` as Prometheus has it: placeholders are labels there, and what only grows ends in _total."""
    name = re.sub(r"\W", "_", re.sub(r"[._]<\w+>", "", metric.key))
    if metric.kind != "gauge":
        name = f"{name.removesuffix('_count').removesuffix('_total')}_total"
    return f"synth_engine_{name}"


def tables() -> str:
    """The table of each file, as Markdown."""
    engine = [metric for metric in METRICS.values() if _area(metric) != _LEARNER]
    learner = [metric for metric in METRICS.values() if _area(metric) == _LEARNER]
    return (
        f"## metrics.jsonl, by `{engine_metrics.RUN_S}`\n\n{_table(engine)}\n"
        f"## learner/metrics.jsonl, by `{learner_metrics.STEP}`\n\n{_table(learner)}"
    )


def _area(metric: Metric) -> str:
    return metric.key.partition("/")[0]


def _table(metrics: Iterable[Metric]) -> str:
    rows = ["| Key | Unit | Kind | Meaning | Prometheus |", "|---|---|---|---|---|"]
    for metric in metrics:
        labels = ",".join(_PLACEHOLDER.findall(metric.key))
        name = prometheus_name(metric) + (f"{{{labels}}}" if labels else "")
        meaning = metric.meaning.replace("|", r"\|")
        rows.append(f"| `{metric.key}` | {metric.unit} | {metric.kind} | {meaning} | `{name}` |")
    return "\n".join(rows) + "\n"
