"""The list of runs, where several could be meant."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import anyio.to_thread
from rich.text import Text
from textual import on
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import Footer

from tui.runs import RunEntry, runs_below
from tui.text import duration, plain
from tui.theme import reward_style
from tui.widgets.lines import Cell
from tui.widgets.table import Column, Table

_COLUMNS = (
    Column("name", "run", 24, 0, right=False),
    Column("state", "state", 12, 0, right=False),
    Column("step", "step", 10, 1, right=True),
    Column("reward", "reward", 7, 2, right=True),
    Column("age", "age", 9, 1, right=True),
    Column("path", "where", 0, 3, right=False),
)
_EVERY_S = 2.0


class Picker(App[Path]):
    """Choose a run; None is returned where nobody does."""

    CSS_PATH = "dashboard.tcss"
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [Binding("q,escape,ctrl+c", "quit", "Leave", priority=True)]

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self._directory = directory

    def compose(self) -> ComposeResult:
        """The runs, newest first."""
        yield Table(_COLUMNS, id="runs")
        yield Footer()

    async def on_mount(self) -> None:
        """Look, and look again: runs end and begin."""
        self.query_one(Table).focus()
        self.set_interval(_EVERY_S, self._look)
        await self._look()

    async def _look(self) -> None:
        entries = await anyio.to_thread.run_sync(runs_below, self._directory)
        table = self.query_one(Table)
        table.foot = f"{len(entries)} in {plain(self._directory)}"
        table.show([_cells(entry) for entry in entries], top=0, total=len(entries), ids=[str(e.path) for e in entries])

    @on(Table.Opened)
    def _open(self, message: Table.Opened) -> None:
        self.exit(Path(message.id))


def _cells(entry: RunEntry) -> list[Cell]:
    reward = "—" if entry.reward is None else f"{entry.reward:.3f}"
    return [
        plain(entry.name),
        plain(entry.state),
        f"{entry.step}/{entry.steps}",
        Text(reward, reward_style(entry.reward)),
        duration(entry.age_s),
        plain(entry.problem or entry.path),
    ]
