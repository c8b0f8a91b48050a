"""Group: the episodes of one task side by side: rewards, rubric items, and the turn at which they part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType

from engine.telemetry.window import Window
from tui.messages import Open
from tui.snapshot import Conversation, Snapshot, SnapshotQuery
from tui.story import actions, divergence, well
from tui.text import cut, plain
from tui.theme import PHASE_LOOKS, reward_style
from tui.view import View
from tui.widgets.facts import Facts
from tui.widgets.lines import Cell
from tui.widgets.table import Column, Table

_COLUMNS = (
    Column("id", "episode", 14, 0, right=False),
    Column("reward", "reward", 8, 0, right=True),
    Column("advantage", "adv", 7, 3, right=True),
    Column("turns", "turns", 5, 2, right=True),
    Column("tokens", "tokens", 8, 4, right=True),
    Column("phase", "phase", 9, 3, right=False),
    Column("items", "rubric", 0, 1, right=False),
    Column("ending", "ending", 24, 2, right=False),
)
_NUMBER, _LEAST, _MOST = 5, 6, 24
"""Cells of a turn's number, and of what one sibling did in it."""


class GroupView(View):
    """One line per episode, and below what each did turn by turn."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "app.pop_screen", "Back")]

    def __init__(self, id: str, window: Window) -> None:  # noqa: A002 - the name of an episode's id everywhere
        super().__init__()
        self._episode, self._window = id, window

    def body(self) -> ComposeResult:
        """The siblings, the rubric, the turns."""
        yield Table(_COLUMNS, id="siblings")
        yield Facts("rubric items, numbered as above", id="items")
        yield Facts("turn by turn", id="turns")

    def on_mount(self) -> None:
        """The siblings have the keys."""
        self.query_one(Table).focus()

    def question(self) -> SnapshotQuery:
        """The group."""
        return SnapshotQuery(window=self._window, follow=self._episode, siblings=True)

    def draw(self, snapshot: Snapshot) -> None:
        """All siblings."""
        talks = snapshot.siblings
        self.query_one(Table).show(
            [_line(talk) for talk in talks], top=0, total=len(talks), ids=[talk.row.id for talk in talks]
        )
        rubric = talks[0].rubric if talks else {}
        lines = [Text(f"{number} {part} {plain(text)}") for number, ((part, _), text) in enumerate(rubric.items(), 1)]
        self.query_one("#items", Facts).show(lines)
        turns = self.query_one("#turns", Facts)
        turns.show(_turns(talks, turns.cells))

    @on(Table.Opened)
    def _open(self, message: Table.Opened) -> None:
        self.app.pop_screen()
        self.app.pop_screen()
        self.post_message(Open(message.id, self._window))


def _line(talk: Conversation) -> list[Cell]:
    row, look = talk.row, PHASE_LOOKS[talk.row.phase]
    met: dict[tuple[str, str], bool] = {}
    for verdict in talk.reward.items if talk.reward else ():
        met[verdict.part, verdict.id] = well(verdict)
    items = Text()
    for number, item in enumerate(talk.rubric, 1):
        good = met.get(item)
        mark = "·" if good is None else "✓" if good else "✗"
        items.append(f"{number}{mark} ", "" if good is None else reward_style(1.0 if good else 0.0))
    return [
        plain(row.id),
        Text("—" if row.reward is None else f"{row.reward:.2f}", reward_style(row.reward)),
        "" if talk.advantage is None else f"{talk.advantage:+.2f}",
        f"{row.turn}",
        f"{row.tokens:,}",
        Text(f"{look.letter} {look.name}", look.style),
        items,
        plain(f"{talk.stop} {row.outcome}"),
    ]


def _turns(talks: Sequence[Conversation], width: int) -> list[Text]:
    """A line per turn, a column per sibling; the turn at which they part is marked."""
    cells = min(_MOST, max(_LEAST, (width - _NUMBER) // max(1, len(talks))))
    told, parted = [actions(talk) for talk in talks], divergence(talks)
    lines = [Text("     " + "".join(cut(talk.row.id.rpartition(".")[2], cells) for talk in talks), "bold")]
    for turn in range(max(map(len, told), default=0)):
        done = "".join(cut(plain(mine[turn]) if turn < len(mine) else "", cells - 1) + " " for mine in told)
        marked = turn == parted
        lines.append(Text(f"{'▸' if marked else ' '}{turn:>3} {done}", "bold reverse" if marked else ""))
    return lines
