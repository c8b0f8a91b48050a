"""The rows of a run's two metrics files, as they are written and after the fact.

Whole lines only, each row once. The engine's counters begin at zero in every process; here they go on, so that what
follows a run over its restarts sees them grow.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson

from engine.errors import RunError
from engine.rundir.layout import RunDir, read_json
from engine.telemetry import engine_metrics, learner_metrics
from engine.telemetry.metrics import meant

_LEARNER_TIMES = (learner_metrics.WAIT, learner_metrics.READ, learner_metrics.STEP_TIME, learner_metrics.PUBLISH)
"""Where a learner spends its time, without overlap."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One row of one file."""

    values: Mapping[str, float]
    axis: str
    """The key that the rows of its file are drawn over."""
    step: int
    """The value of the axis: seconds of the run's clock, or steps of the learner."""
    wall_s: float
    """About when it was written, as a Unix time: the same whenever it is read."""


class RowTail:
    """Rows of a .jsonl file from where the last look ended; one that was replaced is read from its beginning.

    What is damaged ends it: what goes elsewhere is whole. (tui.tails is for a view, which goes on without.)"""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file_number = -1
        self._place = 0

    def rows(self) -> Iterator[dict[str, Any]]:
        """What is new.

        Raises RunError for a whole line that is not JSON."""
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            return
        with file:
            status = os.fstat(file.fileno())
            if status.st_ino != self._file_number or status.st_size < self._place:
                self._file_number, self._place = status.st_ino, 0
            file.seek(self._place)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                try:
                    row = orjson.loads(line)
                except orjson.JSONDecodeError as error:
                    raise RunError(f"{self._path}: the line at byte {self._place} is not JSON ({error})") from error
                self._place += len(line)
                yield row


class Follower:
    """Both files of a run."""

    def __init__(self, run: RunDir) -> None:
        manifest = read_json(run.manifest) or {}
        self._begun_s = datetime.fromisoformat(manifest["created_at"]).timestamp()
        self._engine, self._learner = RowTail(run.metrics), RowTail(run.learner_metrics)
        self._run_s = -1.0
        self._step = 0
        self._learner_s = 0.0
        self._totals = _Totals()

    def read(self) -> Iterator[Sample]:
        """What is new since the last call: of the engine, then of the learner."""
        for row in self._engine.rows():
            now_s = row[engine_metrics.RUN_S]
            if now_s <= self._run_s:
                continue
            self._run_s = now_s
            yield self._sample(self._totals.over(_numbers(row)), engine_metrics.RUN_S, now_s)
        for row in self._learner.rows():
            # A learner cuts its file back to its checkpoint and goes on: the steps that were given stay as they were.
            if row[learner_metrics.STEP] <= self._step:
                continue
            self._step = row[learner_metrics.STEP]
            values = _numbers(row)
            self._learner_s += sum(values.get(key, 0.0) for key in _LEARNER_TIMES)
            yield self._sample(values, learner_metrics.STEP, self._learner_s)

    def _sample(self, values: Mapping[str, float], axis: str, after_s: float) -> Sample:
        return Sample(values=values, axis=axis, step=int(values[axis]), wall_s=self._begun_s + after_s)


class _Totals:
    """Counters over all processes of a run: one that falls began again at zero."""

    def __init__(self) -> None:
        self._before: dict[str, float] = {}
        self._last: dict[str, float] = {}
        """Of the process at work."""

    def over(self, row: Mapping[str, float]) -> dict[str, float]:
        """The row with every counter that was ever seen, gone on, and no total below what it has been."""
        values = dict(row)
        for key in row.keys() | self._last.keys():
            found = meant(key)
            if found is None or found.metric.kind == "gauge":
                continue
            last, now = self._last.get(key, 0), row.get(key, 0)
            if found.metric.kind == "total":
                now = max(last, now)
            elif now < last:
                self._before[key] = self._before.get(key, 0) + last
            self._last[key] = now
            values[key] = self._before.get(key, 0) + now
        return values


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """Without the values that JSON has no number for: NaN and infinity are null there."""
    return {key: value for key, value in row.items() if isinstance(value, int | float)}
