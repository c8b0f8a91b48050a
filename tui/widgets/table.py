"""A table over a window of many rows: it holds and draws what is in sight and asks for the rest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar, NamedTuple

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual.binding import Binding, BindingType
from textual.geometry import Region
from textual.message import Message
from textual.strip import Strip

from tui.text import cut
from tui.theme import CURSOR, STRONG
from tui.widgets.lines import Cell, Choosing, fit, harmless

_FLEXIBLE = 6  # cells that the flexible column gets at least


class Column(NamedTuple):
    """A column; of width 0 it takes what the others leave."""

    key: str
    title: str
    width: int
    priority: int = 0
    """The largest is dropped first where the width does not suffice."""
    right: bool = False


def brace(previous_same: bool, next_same: bool) -> str:  # noqa: FBT001 - a truth table
    """What joins a row to its neighbours of the same group."""
    return ("│" if previous_same else "╭") if next_same else ("╰" if previous_same else " ")


def fitting_columns(columns: Sequence[Column], width: int) -> list[tuple[int, int]]:
    """The columns that fit in `width`, by position, and how wide each is drawn; a space stands before each."""
    kept = list(range(len(columns)))

    def need(at: int) -> int:
        column = columns[at]
        return 1 + (column.width or max(_FLEXIBLE, cell_len(column.title)))

    while len(kept) > 1 and sum(map(need, kept)) > width:
        kept.remove(max(kept, key=lambda at: (columns[at].priority, at)))
    spare = width - sum(1 + columns[at].width for at in kept)
    return [(at, max(0, min(columns[at].width or spare, width - 1))) for at in kept]


class Table(Choosing):
    """Rows and columns with a header that stays. Only the rows of the newest `show` are held."""

    HEAD = 1
    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter", "open", "Open")]

    class Looked(Message):
        """Other lines are in sight now: `rows` of them, from `top`."""

        def __init__(self, top: int, rows: int) -> None:
            super().__init__()
            self.top = top
            self.rows = rows

    class Opened(Message):
        """Enter, or a double click."""

        def __init__(self, id: str) -> None:  # noqa: A002
            super().__init__()
            self.id = id

    def __init__(self, columns: Sequence[Column], *, id: str | None = None, opens: bool = True) -> None:  # noqa: A002
        """Rows of a table that does not open are there to be read."""
        super().__init__(id=id)
        self._columns, self._opens = tuple(columns), opens
        self._fitting: list[tuple[int, int]] = []
        self._held: Sequence[Sequence[Cell]] = ()
        self._looks: Sequence[Sequence[object]] = ()
        """What is on the screen: only what differs is drawn again."""
        self._ids: Sequence[str] = ()
        self._top = 0
        self._sorted_by: tuple[str, bool] | None = None
        self._looked = (0, 0)

    @property
    def cursor_id(self) -> str | None:
        """The id of the row under the cursor, if that row is held."""
        at = self._cursor - self._top
        return self._ids[at] if self._lines and 0 <= at < len(self._ids) else None

    @property
    def sorted_by(self) -> tuple[str, bool] | None:
        """A column's key, and whether downwards; an arrow in the header."""
        return self._sorted_by

    @sorted_by.setter
    def sorted_by(self, sorted_by: tuple[str, bool] | None) -> None:
        if sorted_by != self._sorted_by:
            self._sorted_by = sorted_by
            self.refresh()

    def show(self, rows: Sequence[Sequence[Cell]], *, top: int, total: int, ids: Sequence[str]) -> None:
        """Hold `rows`, with their `ids`, as the lines from `top` of `total`; the cursor stays on its line."""
        # Two texts count as equal, whatever their own style.
        looks = [[cell if isinstance(cell, str) else (cell, cell.style) for cell in row] for row in rows]
        before = self._looks
        # The mark of the cursor too stays where it is, or is nowhere.
        marked = total == self._lines or self._cursor < min(total, self._lines)
        stays = marked and (top, len(rows)) == (self._top, len(before))
        self._held, self._looks, self._ids, self._top = rows, looks, ids, top
        if stays:
            self.measure_lines(total)
            self._refresh_rows(at for at, (old, new) in enumerate(zip(before, looks, strict=True)) if old != new)
        else:
            self.hold_lines(total)
        self._look()

    def _refresh_rows(self, held: Iterable[int]) -> None:
        """Draw these again, of the rows that are held: Textual's work is by the line."""
        first = self.HEAD + self._top - self.scroll_offset.y
        seen = (y for at in held if self.HEAD <= (y := first + at) < self.size.height)
        if regions := [Region(0, y, self.size.width, 1) for y in seen]:
            self.refresh(*regions)

    def render_line(self, y: int) -> Strip:
        """The header, or a row."""
        return self.painted(self._header()) if y == 0 else super().render_line(y - 1)

    def line(self, y: int) -> Strip:
        """Row `y` of all; blank where it is not held."""
        at = y - self._top
        chosen = y == self._cursor and y < self._lines
        parts = [Segment("▸" if chosen else " ")]
        if 0 <= at < len(self._held) and y < self._lines:
            parts = self._parts(parts[0].text, self._held[at])
        if chosen:
            # In one style: reversed colours of cells would be a patchwork.
            words = cut("".join(part.text for part in parts), self.cells)
            return Strip([Segment(words, Style.parse(CURSOR if self.has_focus else STRONG))])
        return Strip(parts)

    def _parts(self, mark: str, cells: Sequence[Cell]) -> list[Segment]:
        """A row. What stands together in one style is one segment: Textual's work is by the segment."""
        parts: list[Segment] = []
        plain_words = mark
        for position, width in self._fitting:
            cell = cells[position] if position < len(cells) else ""
            right = self._columns[position].right
            if isinstance(cell, str) or not (cell.style or cell.spans):
                plain_words += cut(cell if isinstance(cell, str) else cell.plain, width, right=right) + " "
                continue
            parts.append(Segment(plain_words))
            plain_words = " "
            if cell.spans:
                parts += harmless(fit(cell, width, right=right)).render(self.app.console)
            else:
                look = self.app.console.get_style(cell.style, default="")
                parts.append(Segment(cut(cell.plain, width, right=right), look))
        parts.append(Segment(plain_words.removesuffix(" ")))
        return parts

    def on_resize(self) -> None:
        """Other columns fit, other rows are in sight."""
        self._fitting = fitting_columns(self._columns, self.cells)
        self.refresh()
        self._look()

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """Other rows are in sight."""
        super().watch_scroll_y(old_value, new_value)
        self._look()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """No key is shown that does nothing."""
        return self._opens if action == "open" else super().check_action(action, parameters)

    def action_open(self) -> None:
        """Open the row under the cursor."""
        if self._opens and (chosen := self.cursor_id) is not None:
            self.post_message(self.Opened(chosen))

    def _header(self) -> Text:
        header = Text(" ", STRONG)
        key, down = self._sorted_by or ("", False)
        for position, width in self._fitting:
            column = self._columns[position]
            if column.key == key and width:
                title = cut(column.title, min(width - 1, cell_len(column.title))) + ("↓" if down else "↑")
            else:
                title = column.title
            header.append(" " * (len(header) > 1) + cut(title, width, right=column.right))
        return header

    def _look(self) -> None:
        seen = (self.scroll_offset.y, max(0, self.size.height - self.HEAD))
        if seen != self._looked:
            self._looked = seen
            self.post_message(self.Looked(*seen))
