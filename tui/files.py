"""What the files of a run directory tell: its facts, its rows, and all of that at an earlier moment.

Rows of the learner and lines of the log have no time on the run's clock. A learner row counts from the moment at which
a server was first asked to load the adapter that its step published (or a later one, where that was passed over; or
the last engine row, where none was loaded): that is when the engine knew of it. A line of the log is placed by the
`phase` lines around it, whose times on the run's clock are in phase.json.
"""

from __future__ import annotations

import math
import tomllib
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from engine.errors import RunError
from engine.learnerdir.progress import LearnerProgress, read_progress
from engine.learnerdir.steps import TrainedStep
from engine.rundir.layout import RunDir, read_json
from engine.telemetry import engine_metrics as keys
from engine.telemetry.learner_metrics import STEP
from tui.incomplete import Incomplete
from tui.snapshot import LogLine, RunFacts
from tui.tails import FileTail, JsonRow, Newest, Thinned

_LEARNER_ROWS, _SWAPS, _SWAPS_SHOWN, _LINES, _LINES_SHOWN = 2_000, 4_000, 200, 5_000, 500
_LOG_BYTES = 16 << 20


def run_facts(run: RunDir) -> RunFacts:
    """What does not change about a run; reads files.

    Raises RunError for a directory that is no run, or one of another version."""
    manifest = read_json(run.manifest) or {}
    try:
        # Not by engine.config: it was checked when the run was made, and pydantic takes as long to load as all else.
        config = tomllib.loads(run.config.read_text(encoding="utf-8"))
        return _facts(run, config, manifest)
    except OSError as error:
        raise RunError(f"{run.path} is no run: {run.config.name}: {error.strerror}") from None
    except (KeyError, TypeError, ValueError) as error:
        # What is no TOML, or not in UTF-8, is a ValueError too.
        raise RunError(f"{run.config} is not of this version of synth-engine: {error!r}") from None


def _facts(run: RunDir, config: Mapping[str, Any], manifest: Mapping[str, Any]) -> RunFacts:
    schedule, limits, model = config["schedule"], config["limits"], Path(config["model"]["path"])
    slots, tokenizer = schedule["live_slots"], model / "tokenizer.json"
    most = (schedule["max_staleness"] + 1) * schedule["groups_per_step"] * schedule["group_size"]
    return RunFacts(
        path=run.path,
        id=run.run_id,
        # A model of the hub lies in a directory that is named by its commit.
        model=Path(manifest.get("hub_id") or model).name,
        steps=config["run"]["steps"],
        group_size=schedule["group_size"],
        groups_per_step=schedule["groups_per_step"],
        max_staleness=schedule["max_staleness"],
        live_most=most if slots == "auto" else slots,
        most_turns=limits["turns"],
        most_tokens=limits["tokens"],
        tokenizer=tokenizer if tokenizer.is_file() else None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What the files say of a moment, or of now."""

    clock_s: float
    """Of the last engine row."""
    phase: str
    step: int
    engine: Sequence[JsonRow]
    learner: Sequence[JsonRow]
    swaps: Sequence[JsonRow]
    log: Sequence[LogLine]
    note: str
    """What could not be read, or empty."""


class RunFiles:
    """The files of one run; everything here reads or computes, so it belongs in a worker thread."""

    def __init__(self, run: RunDir) -> None:
        self._run = run
        self._engine = Thinned(keys.RUN_S)
        self._learner, self._swaps = Newest(_LEARNER_ROWS, STEP), _Swaps()
        self._log, self._steps = _Log(), _Steps()
        self._tails = [
            FileTail(run.metrics, self._engine),
            FileTail(run.learner_metrics, self._learner),
            FileTail(run.swaps, self._swaps),
            FileTail(run.log, self._log, newest_bytes=_LOG_BYTES),
            FileTail(run.steps, self._steps),
        ]
        self._phase: Mapping[str, Any] = {}
        self._progress = LearnerProgress()
        self._problems: list[str] = []
        self._incomplete = Incomplete(run)

    def close(self) -> None:
        """Release the files."""
        for tail in self._tails:
            tail.close()

    def read(self) -> None:
        """Take what is new; what cannot be read is left out and told."""
        self._problems = []
        for tail in self._tails:
            try:
                tail.read()
            except OSError as error:
                self._problems.append(f"{tail.path.name} cannot be read: {error.strerror}")
            if tail.malformed:
                self._problems.append(f"{tail.malformed:,} lines of {tail.path.name} are damaged")
        try:
            self._phase = read_json(self._run.path / "phase.json") or {}
            self._progress = read_progress(self._run)
        except (RunError, OSError) as error:
            self._problems.append(str(error))
        self._incomplete.look()
        if self._incomplete.note:
            self._problems.append(self._incomplete.note)

    def now(self) -> Told:
        """Everything that is written."""
        engine = self._engine.until(math.inf)
        return Told(
            clock_s=float(engine[-1][keys.RUN_S]) if engine else 0.0,
            phase=str(self._phase.get("phase", "starting")),
            step=self._progress.counters.step,
            engine=engine,
            learner=tuple(self._learner.rows),
            swaps=tuple(self._swaps.rows)[-_SWAPS_SHOWN:],
            log=tuple(line.shown for line in self._log.lines)[-_LINES_SHOWN:],
            note="; ".join(self._problems),
        )

    def at(self, moment_s: float) -> Told:
        """What was written at a moment of the run's clock."""
        engine = self._engine.until(moment_s)
        begun = [entry["phase"] for entry in self._history() if entry["start_s"] <= moment_s]
        clock = _WallClock(self._log.phases, self._history())
        steps = range(1, self._progress.counters.step + 1)
        # Versions are loaded in their order, so the times of the steps ascend.
        step = bisect_right(steps, moment_s, key=self._step_s)
        return Told(
            clock_s=moment_s,
            phase=begun[-1] if begun else "starting",
            step=step,
            engine=engine,
            learner=tuple(row for row in self._learner.rows if row[STEP] <= step),
            swaps=tuple(row for row in self._swaps.rows if row["start_s"] <= moment_s)[-_SWAPS_SHOWN:],
            log=tuple(line.shown for line in self._log.lines if clock(line.wall) <= moment_s)[-_LINES_SHOWN:],
            note="; ".join(self._problems),
        )

    def advantage(self, episode_id: str, moment_s: float = math.inf) -> float | None:
        """What the learner gave an episode, if it had trained the group by then; None for a masked one too."""
        group, _, member = episode_id.rpartition(".")
        trained = self._steps.groups.get(group)
        if trained is None or not member.isdecimal() or self._step_s(trained.step) > moment_s:
            return None
        return trained.advantages[int(member)] if int(member) < len(trained.advantages) else None

    def _step_s(self, step: int) -> float:
        versions = self._swaps.versions
        place = bisect_left(versions, step)
        if place < len(versions):
            return self._swaps.first_s[versions[place]]
        last = self._engine.last
        return float(last[keys.RUN_S]) if last else math.inf

    def _history(self) -> Sequence[Mapping[str, Any]]:
        history: Sequence[Mapping[str, Any]] = self._phase.get("history", ())
        return history


class _Swaps(Newest):
    """The last rows of swaps.jsonl, and when every version was loaded first."""

    def __init__(self) -> None:
        super().__init__(_SWAPS, "event", "start_s")
        self.first_s: dict[int, float] = {}
        self.versions: list[int] = []
        """Ascending."""

    def add(self, row: JsonRow) -> None:
        super().add(row)
        if row["event"] == "load" and row["version"] not in self.first_s:
            self.first_s[row["version"]] = float(row["start_s"])
            self.versions.insert(bisect_left(self.versions, row["version"]), row["version"])

    def clear(self) -> None:
        super().clear()
        self.first_s.clear()
        self.versions.clear()


@dataclass(frozen=True, slots=True)
class _Trained:
    step: int
    advantages: Sequence[float | None]


class _Steps:
    """Advantages by group, from steps.jsonl: what the learner used, whatever function made it."""

    def __init__(self) -> None:
        self.groups: dict[str, _Trained] = {}

    def add(self, row: JsonRow) -> None:
        trained = TrainedStep.of(row)
        for group in trained.groups:
            self.groups[group.id] = _Trained(trained.step, group.advantages)

    def clear(self) -> None:
        self.groups.clear()


@dataclass(frozen=True, slots=True)
class _Line:
    wall: float
    shown: LogLine


@dataclass(slots=True)
class _Log:
    """The last lines of log.jsonl, and every line in which the engine entered a phase."""

    lines: deque[_Line] = field(default_factory=lambda: deque(maxlen=_LINES))
    phases: list[tuple[float, str]] = field(default_factory=list)

    def add(self, row: JsonRow) -> None:
        when = datetime.fromisoformat(row.pop("timestamp")).astimezone()
        event, level, process = str(row.pop("event")), str(row.pop("level", "")), str(row.pop("process", ""))
        shown = LogLine(time=f"{when:%H:%M:%S}", level=level, process=process, event=event, values=row)
        self.lines.append(_Line(when.timestamp(), shown))
        if process == "engine" and event == "phase":
            self.phases.append((when.timestamp(), str(row["phase"])))

    def clear(self) -> None:
        self.lines.clear()
        self.phases.clear()


class _WallClock:
    """From wall-clock times to the run's clock, by the moments that both know."""

    def __init__(self, logged: Sequence[tuple[float, str]], history: Sequence[Mapping[str, Any]]) -> None:
        anchors = sorted(_matched(logged, history))
        self._walls = [wall for wall, _ in anchors]
        self._run_s = [*(run_s for _, run_s in anchors), math.inf]

    def __call__(self, wall: float) -> float:
        """What precedes the first phase is at 0; what follows the end of a life is not later than the next begins."""
        place = bisect_right(self._walls, wall)
        if not place:
            return 0.0 if self._walls else math.inf
        return min(self._run_s[place - 1] + wall - self._walls[place - 1], self._run_s[place])


def _matched(
    logged: Sequence[tuple[float, str]], history: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[float, float]]:
    """The same phases in the log and in phase.json, from the last: an engine that was killed may have told only the
    log, and a long log is read from its middle."""
    lines = iter(reversed(logged))
    for entry in reversed(history):
        wall = next((wall for wall, phase in lines if phase == entry["phase"]), None)
        if wall is None:
            return
        yield wall, float(entry["start_s"])
