"""Warning and stop levels over the rows of learner/metrics.jsonl (docs/learner.md 1.7).

A stop needs the level on the last three rows; a warning only says so in the log. The history is the rows themselves,
so a resumed learner judges as if it had never stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from engine.telemetry import learner_metrics as m
from engine.telemetry.metrics import MetricRow

PATIENCE = 3
"""Rows in a row at a stop level."""
MATTERS_K3 = 1e-3
"""From here on (base against server) the adapter matters enough to see whether it is applied."""
UNCHANGED = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One metric's levels; a predicate gets the row and the history up to and without it."""

    name: str
    warn: Callable[[MetricRow, Sequence[MetricRow]], bool]
    stop: Callable[[MetricRow], bool] = lambda _: False
    remedy: str = ""
    """What a stop means and what to do."""
    show: tuple[str, ...]
    """Keys whose values the sentence tells."""


def _values(history: Sequence[MetricRow], key: str) -> list[float]:
    return [row[key] for row in history if key in row]


def _above_median(key: str, factor: float, floor: float) -> Callable[[MetricRow, Sequence[MetricRow]], bool]:
    def warn(row: MetricRow, history: Sequence[MetricRow]) -> bool:
        values = _values(history, key)
        return bool(values) and row.get(key, 0.0) > max(factor * median(values), floor)

    return warn


def _mismatch_grows(row: MetricRow, history: Sequence[MetricRow]) -> bool:
    # Against the first ten probes; 1e-6 is far above the noise of a float32 server.
    return _above_median(m.MISMATCH_K3, 3.0, 1e-6)(row, [r for r in history if m.MISMATCH_K3 in r][:10])


def _entropy_below(fraction: float) -> Callable[[MetricRow, Sequence[MetricRow]], bool]:
    def warn(row: MetricRow, history: Sequence[MetricRow]) -> bool:
        values = _values(history, m.ENTROPY)[:20]
        return len(values) >= 20 and row[m.ENTROPY] < fraction * fmean(values)

    return warn


def _clipped(row: MetricRow) -> float:
    return row[m.CLIP_LOW] + row[m.CLIP_HIGH] + row[m.CAP]


def _probe_over_base(fraction: float) -> Callable[[MetricRow], bool]:
    def over(row: MetricRow) -> bool:
        base = row.get(m.BASE_K3, 0.0)
        return base > MATTERS_K3 and row[m.MISMATCH_K3] > fraction * base

    return over


RULES = (
    Rule(
        name="adapter not applied",
        # An adapter that is applied leaves far less than a tenth; one that is not leaves all of it.
        warn=lambda row, _: _probe_over_base(0.1)(row),
        stop=_probe_over_base(0.5),
        remedy="the adapter is not applied by the policy server or by the learner, or with another scale; compare "
        "prompt log-probabilities of the published adapter on both sides",
        show=(m.MISMATCH_K3, m.BASE_K3),
    ),
    Rule(
        name="learner and server disagree",
        warn=lambda row, history: _mismatch_grows(row, history) or row.get(m.MISMATCH_ABS, 0.0) > 0.05,
        stop=lambda row: row.get(m.MISMATCH_K3, 0.0) > 0.1 or row.get(m.MISMATCH_ABS, 0.0) > 0.3,
        remedy="they do not run the same model, adapter or temperature",
        show=(m.MISMATCH_K3, m.MISMATCH_ABS),
    ),
    Rule(
        name="policy drifts from its samples",
        warn=lambda row, _: abs(row.get(m.RATIO_MEAN, 1.0) - 1.0) > 0.01 or row.get(m.RATIO_STD, 0.0) > 1.0,
        stop=lambda row: not 0.5 <= row.get(m.RATIO_MEAN, 1.0) <= 2.0,
        remedy="lower learner.lr or schedule.max_staleness",
        show=(m.RATIO_MEAN, m.RATIO_STD, m.DRIFT_K3),
    ),
    Rule(
        name="few samples carry the step",
        warn=lambda row, _: row.get(m.ESS, 1.0) < 0.5,
        stop=lambda row: row.get(m.ESS, 1.0) < 0.3,
        remedy="lower learner.lr or schedule.max_staleness",
        show=(m.ESS,),
    ),
    Rule(
        name="the clip acts on much of the step",
        warn=lambda row, _: _clipped(row) > 0.2,
        stop=lambda row: _clipped(row) > 0.5,
        remedy="lower learner.lr or schedule.max_staleness",
        show=(m.CLIP_LOW, m.CLIP_HIGH, m.CAP),
    ),
    Rule(
        name="gradient norm jumps",
        warn=_above_median(m.GRAD_NORM, 10.0, 0.0),
        show=(m.GRAD_NORM,),
    ),
    Rule(
        name="update norm jumps",
        warn=_above_median(m.UPDATE_NORM, 10.0, 0.0),
        show=(m.UPDATE_NORM,),
    ),
    Rule(
        name="nothing is learned",
        warn=lambda row, _: row[m.UPDATE_NORM] == UNCHANGED,
        stop=lambda row: row[m.UPDATE_NORM] == UNCHANGED,
        remedy="the adapter equals its parent: the learning rate is 0 or every gradient is",
        show=(m.UPDATE_NORM, m.LR, m.GRAD_NORM),
    ),
    Rule(
        name="most groups have no variance",
        warn=lambda row, _: row[m.ZERO_LOW] + row[m.ZERO_HIGH] > 0.7,
        show=(m.ZERO_LOW, m.ZERO_HIGH),
    ),
    Rule(
        name="advantages are not centred",
        warn=lambda row, _: row[m.ADVANTAGE_MEAN] > 1e-5,
        show=(m.ADVANTAGE_MEAN,),
    ),
)


def warnings(row: MetricRow, history: Sequence[MetricRow]) -> list[str]:
    """What is unusual about the newest row, one sentence each; `history` are the rows before it."""
    found = [_sentence(rule, row) for rule in RULES if rule.warn(row, history)]
    if _entropy_below(0.3)(row, history):
        found.append(f"entropy collapses ({m.ENTROPY} = {row[m.ENTROPY]:.3g})")
    return found


def stop_reason(rows: Sequence[MetricRow]) -> str | None:
    """Why training must stop after the newest of `rows`, or None."""
    if len(rows) < PATIENCE:
        return None
    recent = rows[-PATIENCE:]
    for rule in RULES:
        if all(rule.stop(row) for row in recent):
            return f"{_sentence(rule, rows[-1])} for {PATIENCE} steps running: {rule.remedy}"
    if all(_entropy_below(0.1)(row, rows[:-PATIENCE]) for row in recent):
        told = f"{m.ENTROPY} = {rows[-1][m.ENTROPY]:.3g}"
        return f"entropy collapsed ({told}) for {PATIENCE} steps running: lower learner.lr"
    return None


def _sentence(rule: Rule, row: MetricRow) -> str:
    told = ", ".join(f"{key} = {row[key]:.3g}" for key in rule.show if key in row)
    return f"{rule.name} ({told})"
