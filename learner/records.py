"""learner/steps.jsonl and learner/metrics.jsonl: one row a step, never more rows than checkpoints cover.

A row of steps.jsonl is what `audit` recomputes a step from::

    {"step", "version": published by the step, "cursor": [segment, offset],
     "groups": [{"id", "advantages": [per episode, null where masked], "staleness", "tokens"}],
     "dropped": {reason: [group ids]}, "staleness_tokens": {staleness: policy tokens}, "flushed": bool}
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from engine.rundir.layout import JsonLines, RunDir, read_lines, write_atomic
from engine.telemetry import MetricsFile
from engine.telemetry.learner_metrics import STEP
from learner.checkpoint import Checkpoint
from learner.metrics import Row


def steps_path(run: RunDir) -> Path:
    """learner/steps.jsonl."""
    return run.learner / "steps.jsonl"


def metrics_path(run: RunDir) -> Path:
    """learner/metrics.jsonl."""
    return run.learner / "metrics.jsonl"


def append(run: RunDir, step_row: Mapping[str, Any], metrics_row: Row) -> None:
    """Append the rows of a step that is in a checkpoint already; steps.jsonl is durable on return."""
    with MetricsFile(metrics_path(run)) as file:
        file.append(metrics_row)
    with JsonLines(steps_path(run)) as rows:
        rows.append(step_row)
        rows.sync()


def repair(run: RunDir, checkpoint: Checkpoint) -> list[Row]:
    """Cut both files back to the checkpoint, or complete them from it; returns the rows of metrics.jsonl."""
    step = checkpoint.counters.step
    _repair(steps_path(run), "step", step, checkpoint.step_row)
    return _repair(metrics_path(run), STEP, step, checkpoint.metrics_row)


def _repair(path: Path, key: str, step: int, last: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    rows = [row for row in read_lines(path) if row[key] <= step]
    if last is not None and (not rows or rows[-1][key] < step):
        rows.append(dict(last))
    content = b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows)
    if not path.exists() or path.read_bytes() != content:
        write_atomic(path, content)
    return rows
