"""The runs of a directory, and whether anybody works on one."""

from __future__ import annotations

import time
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from engine.errors import SynthError
from engine.learnerdir.progress import read_progress
from engine.processes import alive
from engine.rundir.layout import RunDir, read_json
from engine.telemetry import engine_metrics as keys
from tui.tails import FileTail, Newest

_TAIL_BYTES = 65_536


class Life(StrEnum):
    """What processes.json and the process table say together, on the machine of the run."""

    NEW = "new"
    """Nobody has worked on it yet."""
    ALIVE = "alive"
    """Its supervisor runs, or a process that this left behind."""
    ENDED = "ended"
    """The supervisor ended in order: the run is done, was stopped or gave up."""
    LOST = "lost"
    """They died."""


def life(run: RunDir) -> Life:
    """Whether anybody works on the run.

    Raises RunError or OSError for files that cannot be read."""
    recorded, phase = read_json(run.processes), read_json(run.path / "phase.json")
    if recorded is None:
        return Life.NEW if phase is None else Life.ENDED if phase.get("phase") == "done" else Life.LOST
    if not recorded["processes"]:
        # Written when all are started, and once more when all have ended.
        return Life.ENDED
    supervisor = {"pid": recorded["supervisor"], "started": recorded.get("supervisor_started", 0.0)}
    if _same(supervisor) or any(map(_same, recorded["processes"])):
        return Life.ALIVE
    return Life.ENDED if phase is not None and phase.get("phase") == "done" else Life.LOST


def engine_has_ended(run: RunDir) -> bool:
    """Whether this supervisor's engine is gone for good: all is done, or the run is stopped and only saves.

    A run that goes on again still has the phase of its last life until the engine starts, but no engine yet."""
    phase, recorded = read_json(run.path / "phase.json") or {}, read_json(run.processes) or {"processes": ()}
    engines = [row for row in recorded["processes"] if row["name"] == "engine"]
    return phase.get("phase") in ("done", "draining") and bool(engines) and not any(map(_same, engines))


def last_words(run: RunDir) -> str:
    """What the supervisor said of a run that it gave up or was told to stop; empty for one that is done."""
    ending = (read_json(run.processes) or {}).get("ending")
    return str(ending["message"]).partition("\n")[0] if ending and ending["code"] else ""


def _same(row: Mapping[str, Any]) -> bool:
    return alive.found(row["pid"], float(row["started"])) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEntry:
    """One line of the list of runs."""

    name: str
    path: Path
    state: str
    """starting, live, ended, lost, or unreadable."""
    step: int = 0
    steps: int = 0
    reward: float | None = None
    """Newest mean over training groups."""
    age_s: float = 0.0
    """Since it was made."""
    problem: str = ""
    """Why it is unreadable."""


_STATES = {Life.NEW: "starting", Life.ALIVE: "live", Life.ENDED: "ended", Life.LOST: "lost"}


def runs_below(directory: Path) -> list[RunEntry]:
    """The runs below a directory, newest first; cheap, whatever they have recorded."""
    return sorted(_entries(directory), key=lambda entry: entry.age_s)


def _entries(directory: Path) -> Iterator[RunEntry]:
    for manifest in directory.glob("*/manifest.json"):
        path = manifest.parent
        # `latest` is one of the others.
        if path.is_symlink():
            continue
        age_s = 0.0
        try:
            age_s = max(0.0, time.time() - manifest.stat().st_mtime)
            yield _entry(RunDir(path), age_s)
        except (SynthError, OSError, tomllib.TOMLDecodeError, KeyError, TypeError, ValueError) as error:
            reason = f"its files do not say {error}" if isinstance(error, KeyError) else str(error)
            yield RunEntry(name=path.name, path=path, state="unreadable", age_s=age_s, problem=reason)


def _entry(run: RunDir, age_s: float) -> RunEntry:
    read_json(run.manifest)
    steps = tomllib.loads(run.config.read_text())["run"]["steps"]
    return RunEntry(
        name=run.path.name,
        path=run.path,
        state=_STATES[life(run)],
        step=read_progress(run).counters.step,
        steps=int(steps),
        reward=_reward(run.metrics),
        age_s=age_s,
    )


def _reward(metrics: Path) -> float | None:
    newest = Newest(1, keys.REWARD_MEAN)
    tail = FileTail(metrics, newest, newest_bytes=_TAIL_BYTES)
    try:
        tail.read()
    finally:
        tail.close()
    return float(newest.rows[-1][keys.REWARD_MEAN]) if newest.rows else None
