"""What a check is, and the files of a run that checks compare the stream with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from engine.config.load import load
from engine.config.tree import Config
from engine.learnerdir.progress import LearnerProgress, read_progress
from engine.learnerdir.steps import TrainedStep, read_steps
from engine.rundir.layout import RunDir, read_json, read_lines
from engine.stream.integrity import Gap, gaps
from engine.types import EpisodeGroup

_NAMED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditFinding:
    """What one check found."""

    name: str
    promise: str
    """The sentence that was checked."""
    checked: str
    """How much was looked at, with its noun; says so where nothing could be."""
    violations: Sequence[str] = ()
    count: int = 0
    """Things in violation: episodes, groups or requests, as the name of the check says."""

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.violations


class Invariant(Protocol):
    """One invariant."""

    def see(self, group: EpisodeGroup) -> None:
        """Look at the next group: the training stream in arrival order, then the evaluations."""
        ...

    def finding(self) -> AuditFinding:
        """What was found, after the last group."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecords:
    """The files beside the stream, read once."""

    run: RunDir
    config: Config
    manifest: Mapping[str, Any]
    steps: Sequence[TrainedStep]
    """learner/steps.jsonl."""
    swaps: Sequence[Mapping[str, Any]]
    """swaps.jsonl: loads, flips, unloads; attempts of turns that failed; times in which a server had no traffic."""
    rows: Sequence[Mapping[str, Any]]
    """metrics.jsonl."""
    progress: LearnerProgress
    gaps: Sequence[Gap]
    """What the streams and steps.jsonl lack, by the other files."""

    @classmethod
    def read(cls, run: RunDir) -> RunRecords:
        """Everything but the stream.

        Raises ConfigError if it is no run, RunError for an unreadable file."""
        return cls(
            run=run,
            manifest=read_json(run.manifest) or {},
            config=load(run.config).config,
            steps=list(read_steps(run)),
            swaps=list(read_lines(run.swaps)),
            rows=list(read_lines(run.metrics)),
            progress=read_progress(run),
            gaps=gaps(run, checksums=True),
        )

    def total(self, key: str) -> float:
        """What a counter of metrics.jsonl came to over all engine processes; each starts again at zero."""
        total = last = 0.0
        for row in self.rows:
            now = row.get(key, 0)
            total += now - last if now >= last else now
            last = now
        return total


def named(ids: Sequence[str]) -> str:
    """The first ids of a list, and how many more there are."""
    rest = len(ids) - _NAMED
    return ", ".join(ids[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")
