"""Every metric there is, as one table: what `synth-engine metrics names` prints and docs/metrics.md shows.

A key with a changing part stands in it once, with a placeholder.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from engine.telemetry import engine_metrics, learner_metrics
from engine.telemetry.metrics import METRIC_PLACEHOLDER, METRICS, Metric

_LEARNER = learner_metrics.STEP.partition("/")[0]


def prometheus_name(metric: Metric) -> str:
    """`area/name_unit` as Prometheus has it: placeholders are labels there, and what only grows ends in _total."""
    name = re.sub(r"\W", "_", re.sub(r"[._]<\w+>", "", metric.key))
    if metric.kind != "gauge":
        name = f"{name.removesuffix('_count').removesuffix('_total')}_total"
    return f"synth_engine_{name}"


def key_placeholders(metric: Metric) -> list[str]:
    """The placeholders of a key."""
    return METRIC_PLACEHOLDER.findall(metric.key)


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
        name = prometheus_name(metric)
        if found := key_placeholders(metric):
            name += f"{{{','.join(found)}}}"
        meaning = metric.meaning.replace("|", r"\|")
        rows.append(f"| `{metric.key}` | {metric.unit} | {metric.kind} | {meaning} | `{name}` |")
    return "\n".join(rows) + "\n"
