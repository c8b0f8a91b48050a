"""Log: what the processes wrote down, newest first."""

from __future__ import annotations

import re
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType

from engine.telemetry.window import Window
from engine.types import EPISODE_ID
from tui.dialogs import Whole
from tui.messages import Open
from tui.snapshot import LogLine, Snapshot
from tui.text import plain
from tui.view import View
from tui.widgets.line import Line
from tui.widgets.lines import Cell
from tui.widgets.table import Column, Table

_LEVELS = ("all", "info", "warning", "error")
_EPISODE = re.compile(rf"\b{EPISODE_ID}\b")
_COLUMNS = (
    Column("time", "time", 9, 1, right=False),
    Column("level", "level", 8, 0, right=False),
    Column("process", "process", 9, 2, right=False),
    Column("event", "event", 34, 0, right=False),
    Column("values", "", 0, 3, right=False),
)


class LogView(View):
    """The newest lines, by level and by what they say."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "search", "Search", key_display="/"),
        Binding("l", "level", "Level"),
        Binding("o", "episode", "Episode"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._level, self._words = _LEVELS[0], ""
        self._lines: list[LogLine] = []
        self._latest: Snapshot | None = None

    def body(self) -> ComposeResult:
        """The lines, and where to write what is searched for."""
        yield Table(_COLUMNS, id="lines")
        yield Line(placeholder="words in a line")

    def on_mount(self) -> None:
        """The lines have the keys."""
        self.query_one(Table).focus()

    def draw(self, snapshot: Snapshot) -> None:
        """The lines that are wanted."""
        self._latest = snapshot
        self._lines = [line for line in reversed(snapshot.log) if self._wanted(line)]
        table = self.query_one(Table)
        table.foot = f"{len(self._lines)} lines, newest first · {self._level} · {plain(self._words) or '/ searches'}"
        table.show(
            [_cells(line) for line in self._lines],
            top=0,
            total=len(self._lines),
            ids=[f"{line.time} {line.event} {number}" for number, line in enumerate(self._lines)],
        )

    def _wanted(self, line: LogLine) -> bool:
        at_least = _LEVELS.index(line.level) if line.level in _LEVELS else len(_LEVELS)
        return at_least >= _LEVELS.index(self._level) and self._words in f"{line.event} {line.values}".lower()

    def _again(self) -> None:
        if self._latest is not None:
            self.draw(self._latest)

    def action_search(self) -> None:
        """Write what to look for."""
        self.query_one(Line).open()

    @on(Line.Submitted)
    def _submitted(self, message: Line.Submitted) -> None:
        self._words = message.value.strip().lower()
        self.key_escape()
        self._again()

    def key_escape(self) -> None:
        """Back to the lines."""
        self.query_one(Line).close(self.query_one(Table))

    def action_level(self) -> None:
        """The next level: that and what is worse."""
        self._level = _LEVELS[(_LEVELS.index(self._level) + 1) % len(_LEVELS)]
        self._again()

    def _chosen(self) -> LogLine | None:
        cursor = self.query_one(Table).cursor
        return self._lines[cursor] if cursor < len(self._lines) else None

    @on(Table.Opened)
    def _open(self) -> None:
        if (line := self._chosen()) is not None:
            told = [f"{line.time} {line.level} {line.process}", plain(line.event), ""]
            self.app.push_screen(Whole([*told, *(f"{plain(k)}: {plain(v, 2_000)}" for k, v in line.values.items())]))

    def action_episode(self) -> None:
        """The episode that the line names."""
        line = self._chosen()
        found = _EPISODE.search(f"{line.event} {line.values}") if line else None
        if found:
            self.post_message(Open(found[0], Window()))
        else:
            self.notify("this line names no episode")


def _cells(line: LogLine) -> list[Cell]:
    style = {"warning": "bold yellow", "error": "bold red"}.get(line.level, "")
    values = "  ".join(f"{key}={value}" for key, value in line.values.items())
    return [line.time, Text(plain(line.level), style), plain(line.process), plain(line.event), plain(values, 400)]
