"""learner/steps.jsonl and learner/metrics.jsonl: one row a step, never more rows than checkpoints cover."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from engine.learnerdir.steps import TrainedStep
from engine.rundir.layout import JsonLines, RunDir, read_lines, write_atomic
from engine.telemetry import MetricsFile
from engine.telemetry.learner_metrics import STEP
from engine.telemetry.metrics import MetricRow
from learner.checkpoint import Checkpoint


def append(run: RunDir, trained: TrainedStep, metrics_row: MetricRow) -> None:
    """Append the rows of a step that is in a checkpoint already; steps.jsonl is durable on return."""
    with MetricsFile(run.learner_metrics) as file:
        file.append(metrics_row)
    with JsonLines(run.steps) as rows:
        rows.append(trained.value())
        rows.sync()


def repair(run: RunDir, checkpoint: Checkpoint) -> list[MetricRow]:
    """Cut both files back to the checkpoint, or complete them from it; returns the rows of metrics.jsonl."""
    state = checkpoint.state
    trained = None if state.trained is None else state.trained.value()
    _repair(run.steps, "step", state.counters.step, trained)
    return _repair(run.learner_metrics, STEP, state.counters.step, state.metrics_row)


def _repair(path: Path, key: str, step: int, last: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    rows = [row for row in read_lines(path) if row[key] <= step]
    if last is not None and (not rows or rows[-1][key] < step):
        rows.append(dict(last))
    content = b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows)
    if not path.exists() or path.read_bytes() != content:
        write_atomic(path, content)
    return rows
