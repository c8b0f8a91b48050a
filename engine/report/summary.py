"""summary.json: what a run came to, in numbers that were recorded; and the last words of `synth-engine run`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.audit.check import AuditFinding, RunRecords
from engine.audit.run import audit
from engine.learnerdir.steps import TrainedStep
from engine.report.curves import Curves, improved, paired_gain
from engine.report.gauges import phase_s, phase_start_s
from engine.report.simulators import simulators
from engine.rundir.layout import RunDir, read_json, read_lines, write_json
from engine.telemetry import engine_metrics as keys
from engine.types import Episode

_ZEROS = (
    "episodes_mixed_versions",
    "requests_paused_by_swap",
    "requests_aborted_by_swap",
    "episodes_trained_twice",
    "episodes_lost",
)
_BALANCED = 0.1
"""Below this share of the training time, waiting is no bottleneck."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Everything the report shows."""

    recorded: RunRecords
    values: Mapping[str, Any]
    """The content of summary.json."""
    curves: Curves
    findings: Sequence[AuditFinding]
    evaluations: Sequence[Mapping[str, Any]]
    """Rows of eval/evaluations.jsonl."""
    example: tuple[Episode, Episode] | None
    """One held-out task, before and after, that improved."""


def summarize(run: RunDir) -> Summary:
    """Read a run once, audit it, and write summary.json.

    Raises RunError for an unreadable file."""
    recorded, curves = RunRecords.read(run), Curves()
    findings = audit(recorded, [curves.see])
    evaluations = list(read_lines(run.eval / "evaluations.jsonl"))
    before, after = _last_row(evaluations, "heldout_before"), _last_row(evaluations, "heldout_after")
    early, late = curves.heldout(before["version"], after["version"]) if before and after else ({}, {})
    gain, half, tasks = paired_gain(early, late)
    counts = {finding.name: finding.count for finding in findings}
    values = {
        "run_id": recorded.manifest["run_id"],
        "seed": recorded.config.run.seed,
        "heldout_before": _measured(before),
        "heldout_after": _measured(after),
        "heldout_gain": {**interval(gain, half), "tasks": tasks} if tasks else None,
        "validation": [_measured(row) for row in evaluations if row["name"] == "validation"],
        "best_version": run.best,
        "steps": len(recorded.steps),
        "swaps": len({row["adapter"] for row in recorded.swaps if row["event"] == "flip" and row["version"] > 0}),
        "staleness": _staleness(recorded.steps),
        "episodes": curves.episodes,
        "episodes_masked": curves.masked,
        "outcomes": dict(curves.outcomes),
        "stop_reasons": dict(curves.stops),
        "tool_faults": dict(Counter(row["fault"] for row in read_lines(run.faults))),
        "simulators": simulators(recorded, curves.recorded),
        "turns": curves.turns,
        "policy_tokens": curves.policy_tokens,
        "groups_trained": recorded.progress.counters.trained_groups,
        "groups_dropped": dict(recorded.progress.counters.dropped),
        "stream_mb": sum(path.stat().st_size for path in run.trajectories.glob("*.seg")) / 1e6,
        **{name: counts[name] for name in _ZEROS},
        "broken_promises": {finding.name: finding.count for finding in findings if not finding.ok},
        **_times(recorded),
    }
    write_json(run.summary, values)
    return Summary(
        recorded=recorded,
        values=values,
        curves=curves,
        findings=findings,
        evaluations=evaluations,
        example=improved(early, late),
    )


def interval(mean: float, half: float) -> dict[str, float]:
    """A mean with its 95 % interval: half width and both ends."""
    return {"mean": mean, "ci95": half, "low": mean - half, "high": mean + half}


def _measured(row: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if row is None:
        return None
    kept = ("version", "episodes", "masked", "F", "N", "I")
    return {**interval(row["mean"], row["ci95"]), **{key: row[key] for key in kept}}


def _last_row(rows: Iterable[Mapping[str, Any]], name: str) -> Mapping[str, Any] | None:
    return next((row for row in reversed(list(rows)) if row["name"] == name), None)


def _staleness(steps: Iterable[TrainedStep]) -> dict[str, float]:
    """Share of the trained tokens per staleness."""
    tokens: Counter[str] = Counter()
    for step in steps:
        tokens.update(step.staleness_tokens or {})
    total = tokens.total()
    return {staleness: count / total for staleness, count in sorted(tokens.items())} if total else {}


def _times(recorded: RunRecords) -> dict[str, Any]:
    history = (read_json(recorded.run.path / "phase.json") or {"history": []})["history"]
    rows = recorded.rows
    wall_s = max([float(rows[-1][keys.RUN_S]) if rows else 0.0, *(entry["start_s"] for entry in history)])
    begun = phase_start_s(history, "training")
    train_wall_s = phase_s(history, ("training", "draining"), wall_s)
    admission_s = min(recorded.total(keys.WAIT_ADMISSION), train_wall_s)
    # The learner is up before the first measurement of the held-out split and counts that too; it is no training time.
    waited_s = recorded.progress.counters.wait_s - (begun or 0.0)
    learner_s = min(max(0.0, waited_s), train_wall_s)
    return {
        "wall_s": wall_s,
        "train_wall_s": train_wall_s,
        "learner_waited_s": learner_s,
        "admission_waited_s": admission_s,
        "bottleneck": bottleneck(learner_s, admission_s, train_wall_s),
    }


def bottleneck(learner_s: float, admission_s: float, train_s: float) -> str:
    """The two opposite gauges in words: who waited for whom, and what to raise."""
    waits = (
        f"the learner waited {learner_s:.0f} s for groups, "
        f"admission {admission_s:.0f} s for the learner, in {train_s:.0f} s of training"
    )
    if max(learner_s, admission_s) < _BALANCED * train_s:
        return f"bottleneck: none; {waits}"
    if admission_s > learner_s:
        return f"bottleneck: learner; raise learner.threads, or schedule.max_staleness to overlap more ({waits})"
    return f"bottleneck: rollouts; raise policy.threads or schedule.live_slots, or add a server ({waits})"
