"""What the screens draw: one frozen value per tick, the same from a live engine, a run directory and a replay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from engine.telemetry.stages import ToolRow
from engine.telemetry.window import BINS, Window, WindowRow
from engine.types import Event, Reward, Span, TurnTiming

RunState = Literal["starting", "live", "ended", "lost", "replay"]
"""`starting`: no engine yet. `ended`: the run is over or was stopped. `lost`: its processes died."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What does not change while one looks."""

    path: Path
    id: str
    model: str
    """Its name, without the directory."""
    steps: int
    group_size: int
    groups_per_step: int
    max_staleness: int
    live_most: int
    """Episodes that can be live at once."""
    most_turns: int
    most_tokens: int
    """Of an episode."""
    tokenizer: Path | None = None
    """Its tokenizer.json, where the model has one."""


class LogLine(NamedTuple):
    """One event of log.jsonl."""

    time: str
    """Local clock, HH:MM:SS."""
    level: str
    process: str
    event: str
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """One episode, as far as it got."""

    row: WindowRow
    messages: Sequence[Mapping[str, Any]] = ()
    """Chat messages: role and content."""
    events: Sequence[Event] = ()
    timings: Sequence[TurnTiming] = ()
    ids: Sequence[int] = ()
    """Token ids of all of it."""
    logprobs: Sequence[float] = ()
    """log mu of the sampled ids, in the order of the spans, in nats."""
    spans: Sequence[Span] = ()
    """Which ids were sampled, and by which adapter version."""
    server: str = ""
    most_turns: int | None = None
    most_tokens: int | None = None
    stop: str = ""
    """What ended it; empty while it goes on."""
    error: str = ""
    reward: Reward | None = None
    advantage: float | None = None
    """Of all its tokens, once the group is trained."""
    instruction: str = ""
    """The task, as the agent got it."""
    rubric: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """The text of every rubric item, by part and id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotQuery:
    """What the screens want to see."""

    window: Window = field(default_factory=Window)
    follow: str = ""
    """An episode to show whole."""
    siblings: bool = False
    """Its group too."""
    stages: bool = False
    """The tools and the delays of the loop, of an engine that answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One tick."""

    run: RunFacts
    state: RunState
    clock_s: float
    """On the run's clock."""
    phase: str = "starting"
    """Of the run: starting, heldout_before, training, heldout_after, draining, done."""
    step: int = 0
    """Steps trained."""
    window: Window = field(default_factory=Window)
    """That `rows` answers."""
    rows: Sequence[WindowRow] = ()
    total: int = 0
    """Rows that pass the filter."""
    phases: Mapping[str, int] = field(default_factory=dict)
    """Episodes by phase (engine.telemetry.window.PHASES)."""
    rewards: Sequence[int] = (0,) * BINS
    """Histogram of the newest rewards."""
    engine: Sequence[Mapping[str, float]] = ()
    """Rows of metrics.jsonl, oldest first, thinned out; the last is the newest."""
    learner: Sequence[Mapping[str, Any]] = ()
    """Rows of learner/metrics.jsonl, one a step."""
    swaps: Sequence[Mapping[str, Any]] = ()
    """The newest rows of swaps.jsonl."""
    log: Sequence[LogLine] = ()
    """The newest lines of log.jsonl."""
    episode: Conversation | None = None
    """The followed one."""
    siblings: Sequence[Conversation] = ()
    """Its group, it among them, in order; empty unless asked for."""
    tools: Sequence[ToolRow] = ()
    """Those that were called most; empty unless asked for."""
    lags: Sequence[int] = ()
    """Histogram of the loop's delays over the last minute (engine.telemetry.looplag); empty unless asked for."""
    note: str = ""
    """One sentence on why something is missing here, or empty."""
    span_s: tuple[float, float] = (0.0, 0.0)
    """First and last moment that a replay can show."""


class SnapshotSource(Protocol):
    """Where snapshots come from."""

    async def look(self, question: SnapshotQuery) -> Snapshot:
        """The state now.

        Raises ConfigError for a filter that cannot be understood; a source that has lost its engine says so in the
        snapshot."""
        ...

    async def cancel(self, episode_id: str) -> str:
        """Ask the engine to end an episode; returns what became of that, in a sentence."""
        ...

    async def close(self) -> None:
        """Let go of files and sockets."""
        ...


@runtime_checkable
class Replay(SnapshotSource, Protocol):
    """A source whose clock can be moved."""

    speed: float
    """Seconds of the run per second; 0 stands still."""

    def seek(self, clock_s: float) -> None:
        """Show this moment of the run's clock, kept within the span."""
        ...
