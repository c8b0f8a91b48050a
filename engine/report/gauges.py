"""The state of a run as its files tell it: one value for every progress view."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from engine.config.tree import Config
from engine.learnerdir.progress import read_progress
from engine.rundir.layout import RunDir, read_json
from engine.telemetry import engine_metrics as keys

_TAIL_BYTES = 65_536
_WINDOW_ROWS = 15
"""Rates are taken over this many rows of metrics.jsonl, about as many seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressGauges:
    """What a progress line shows."""

    phase: str
    run_s: float
    step: int
    steps: int
    version: int
    reward: float
    F: float
    N: float
    I: float  # noqa: E741 - the paper's name
    episodes_per_s: float
    tokens_per_s: float
    live: int
    eval_live: int
    servers_down: int
    eta_s: float | None
    """Seconds to the end of the run; None until two steps are done."""


def read_gauges(run: RunDir, config: Config) -> ProgressGauges:
    """The newest state; zeros where nothing is written yet."""
    rows = _last_rows(run.metrics)
    last: Mapping[str, float] = rows[-1] if rows else {}
    phases = read_json(run.path / "phase.json") or {"phase": "starting", "history": []}
    step, run_s = read_progress(run).counters.step, last.get(keys.RUN_S, 0.0)
    return ProgressGauges(
        phase=phases["phase"],
        run_s=run_s,
        step=step,
        steps=config.run.steps,
        version=int(last.get(keys.ADAPTER_VERSION, 0)),
        reward=last.get(keys.REWARD_MEAN, 0.0),
        F=last.get(keys.F_MEAN, 0.0),
        N=last.get(keys.N_MEAN, 0.0),
        I=last.get(keys.I_MEAN, 0.0),
        episodes_per_s=_rate(rows, keys.EPISODES_FINISHED),
        tokens_per_s=_rate(rows, keys.TOKENS_SAMPLED),
        live=int(last.get(keys.EPISODES_LIVE, 0)),
        eval_live=int(last.get(keys.EVAL_LIVE, 0)),
        servers_down=int(last.get(keys.SERVERS_DOWN, 0)),
        eta_s=_eta_s(phases["history"], run_s, step, config.run.steps),
    )


def _last_rows(path: Path) -> list[dict[str, Any]]:
    """The last rows of a metrics.jsonl, whole ones only."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL_BYTES))
        lines = file.read().split(b"\n")
    # The first may be cut by the window, the last by a writer at work.
    whole = lines[1 if size > _TAIL_BYTES else 0 : -1]
    return [orjson.loads(line) for line in deque(whole, maxlen=_WINDOW_ROWS)]


def _rate(rows: list[dict[str, Any]], key: str) -> float:
    if len(rows) < 2:
        return 0.0
    seconds = rows[-1][keys.RUN_S] - rows[0][keys.RUN_S]
    # A restarted engine counts from zero again.
    return max(0.0, rows[-1][key] - rows[0][key]) / seconds if seconds > 0 else 0.0


def phase_start_s(history: Iterable[Mapping[str, Any]], phase: str) -> float | None:
    """When a phase was entered first, in seconds on the run's clock."""
    return next((float(entry["start_s"]) for entry in history if entry["phase"] == phase), None)


def phase_s(history: Sequence[Mapping[str, Any]], phases: Iterable[str], now_s: float) -> float:
    """Seconds spent in these phases, over all lives of a run."""
    ends = [*(float(entry["start_s"]) for entry in history[1:]), now_s]
    return sum(
        max(0.0, end - float(entry["start_s"]))
        for entry, end in zip(history, ends, strict=False)
        if entry["phase"] in phases
    )


def _eta_s(history: list[dict[str, Any]], run_s: float, step: int, steps: int) -> float | None:
    if step < 2:
        return None
    measuring = phase_s(history, ("heldout_before",), run_s)
    if history[-1]["phase"] == "heldout_after":
        return max(0.0, float(history[-1]["start_s"]) + measuring - run_s)
    return (steps - step) * phase_s(history, ("training", "draining"), run_s) / step + measuring
