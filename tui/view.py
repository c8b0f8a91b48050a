"""The base of the screens: a status line, what a screen shows, and the keys of what has the focus."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult, RenderResult
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Footer

from engine.telemetry import engine_metrics as keys
from tui.messages import Changed
from tui.numbers import newest_row
from tui.snapshot import Snapshot, SnapshotQuery
from tui.text import clock, plain

_STATES = {
    "starting": ("◌ starting", "bold"),
    "live": ("● live", "bold green"),
    "ended": ("○ ended", "bold"),
    "lost": ("○ lost", "bold red"),
    "replay": ("▶ replay", "bold"),
}


class Status(Widget):
    """One line about the run, and one about what is wrong, if anything is."""

    DEFAULT_CSS = "Status { height: auto; width: 1fr; }"

    def __init__(self) -> None:
        super().__init__()
        self._lines = [Text("synth-engine")]

    def show(self, snapshot: Snapshot, notes: tuple[str, ...], pace: str) -> None:
        """Draw this."""
        lines = [_line(snapshot, pace), *(Text(plain(note), "bold yellow") for note in notes)]
        if lines == self._lines:
            return
        grown, self._lines = len(lines) != len(self._lines), lines
        self.refresh(layout=grown)

    def render(self) -> RenderResult:
        """The lines, cut at the edge."""
        text = Text("\n", no_wrap=True, overflow="ellipsis").join(self._lines)
        text.no_wrap, text.overflow = True, "ellipsis"
        return text


def _line(snapshot: Snapshot, pace: str) -> Text:
    run, row = snapshot.run, newest_row(snapshot)
    word, style = _STATES[snapshot.state]
    facts = [
        f"step {snapshot.step}/{run.steps}",
        clock(snapshot.clock_s),
        snapshot.phase.replace("_", " "),
        f"{plain(run.model)}  v{row.get(keys.ADAPTER_VERSION, 0):.0f}",
        f"loop p99 {1e3 * row[keys.LAG_P99]:.0f} ms" if keys.LAG_P99 in row else "",
    ]
    line = Text(f"{plain(run.id)}   ", "bold")
    line.append(word, style)
    if pace:
        # Before the facts: a narrow screen cuts those.
        line.append(f"   {pace}", "bold yellow")
    line.append("   " + "   ".join(filter(None, facts)), "none")
    return line


class View(Screen[None]):
    """A screen that draws snapshots."""

    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (110, "-wide")]  # noqa: RUF012 - as Textual declares it
    HZ: ClassVar[float] = 2.0
    """Snapshots a second."""

    def __init__(self) -> None:
        super().__init__()
        self._composed = False

    def on_mount(self) -> None:
        """Its widgets are there: what they show is asked for."""
        self._composed = True
        self.post_message(Changed())

    def compose(self) -> ComposeResult:
        """Status, body, keys."""
        yield Status()
        yield from self.body()
        yield Footer()

    def body(self) -> ComposeResult:
        """What is between status and keys."""
        raise NotImplementedError

    def question(self) -> SnapshotQuery:
        """What it wants to see next."""
        return SnapshotQuery()

    def draw(self, snapshot: Snapshot) -> None:
        """Show a snapshot."""
        raise NotImplementedError

    def show(self, snapshot: Snapshot, notes: tuple[str, ...], pace: str = "") -> None:
        """Shows a snapshot, sentences on what is wrong, and a few words on how often it is drawn."""
        # Not before they are there, nor while they are taken away.
        if self._composed and self.query(Status):
            self.query_one(Status).show(snapshot, notes, pace)
            self.draw(snapshot)
