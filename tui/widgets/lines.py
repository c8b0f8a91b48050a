"""The base of the widgets: only the lines in sight are made, text is never markup, every cell is painted."""

from __future__ import annotations

import math
from typing import ClassVar

from rich.text import Span, Text
from textual import events
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.geometry import Region, Size
from textual.scroll_view import ScrollView
from textual.strip import Strip

from tui.text import cut, fitted, plain, visible

Cell = str | Text

_THUMB_STEPS = 8
"""Of a scroll bar, in each cell."""


def fit(cell: Cell, width: int, *, right: bool = False) -> Text:
    """`cell` in exactly `width` cells; a Text keeps the styles of its parts."""
    if isinstance(cell, str):
        return Text(cut(cell, width, right=right))
    line, spare = fitted(cell.plain, width)
    shift = spare if right else 0
    spans = [
        Span(span.start + shift, min(span.end, len(line)) + shift, span.style)
        for span in cell.spans
        if span.start < min(span.end, len(line))
    ]
    return Text(" " * spare + line if right else line + " " * spare, cell.style, spans=spans)


def harmless(text: Text) -> Text:
    """`text` on one line, of visible characters, with the same styles."""
    line = visible(text.plain).replace("\n", "⏎")
    return Text(line, spans=[Span(0, len(line), text.style), *text.spans] if line else [])


class Lines(ScrollView, can_focus=True):
    """Draws `line(y)` for the lines in sight, between a title and a foot in the border."""

    ALLOW_SELECT = False
    DEFAULT_CSS = """
    Lines {
        border: round $secondary;
        overflow-x: hidden;
        overflow-y: auto;
        scrollbar-size-vertical: 1;
        &:focus { border: round $accent; }
    }
    """

    def __init__(self, title: str = "", *, id: str | None = None) -> None:  # noqa: A002 - as Textual calls it
        super().__init__(id=id)
        self._heading = self._foot = ""
        self.title = title

    @property
    def title(self) -> str:
        """In the upper border."""
        return self._heading

    @title.setter
    def title(self, title: str) -> None:
        if title != self._heading:
            self._heading = title
            self.border_title = Content(plain(title, 200))

    @property
    def foot(self) -> str:
        """In the lower border, on the right."""
        return self._foot

    @foot.setter
    def foot(self, foot: str) -> None:
        if foot != self._foot:
            self._foot = foot
            # Textual's setter would draw all lines again, and this may change at each picture.
            self._border_subtitle = Content(plain(foot, 200))
            self.refresh(Region(0, self.size.height, self.size.width, 1))

    @property
    def cells(self) -> int:
        """Of a line, beside the scroll bar."""
        return self.scrollable_size.width

    def line(self, y: int) -> Strip | Text:
        """Line `y` of the content, of any width: it is cropped. A Text is made visible, a Strip has to be."""
        raise NotImplementedError

    def render_line(self, y: int) -> Strip:
        """Line `y` of the widget, in the widget's own style wherever the content has none."""
        return self.painted(self.line(self.scroll_offset.y + y))

    def painted(self, content: Strip | Text) -> Strip:
        """`content` as wide as the widget."""
        strip = Strip(harmless(content).render(self.app.console)) if isinstance(content, Text) else content
        return strip.adjust_cell_length(self.size.width).apply_style(self.visual_style.rich_style)

    def watch_show_vertical_scrollbar(self) -> None:
        """The scroll bar comes into sight: it has not heard of what was scrolled before."""
        self.vertical_scrollbar.position = self.scroll_offset.y

    def hold(self, lines: int) -> None:
        """Let the content be `lines` long, and draw it."""
        self.measure(lines)
        self.refresh()

    def measure(self, lines: int) -> None:
        """Let the content be `lines` long; what is in sight stays as it is, if it can."""
        size, bar = Size(0, lines), self.vertical_scrollbar if self.show_vertical_scrollbar else None
        if bar is not None and self._thumb(lines) == self._thumb(bar.window_virtual_size):
            # It looks the same: the screen need not be laid out again.
            self.set_reactive(Lines.virtual_size, size)
        else:
            self.virtual_size = size
        if self.scroll_offset.y > self.max_scroll_y:
            self.scroll_to(y=self.max_scroll_y, animate=False, force=True)

    def _thumb(self, lines: int) -> tuple[int, int] | None:
        """Where the scroll bar of so many lines has its thumb, and how long that is, as it is drawn."""
        page = self.size.height
        if not 0 < page < lines:
            return None
        length = max(1.0, page * page / lines)
        start = (page - length) * self.scroll_offset.y / (lines - page)
        return int(_THUMB_STEPS * start), math.ceil(_THUMB_STEPS * length)


class Choosing(Lines):
    """Lines of which one is chosen, by keys or mouse. They are as wide with a scroll bar as without."""

    DEFAULT_CSS = """
    Choosing { scrollbar-gutter: stable; }
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down,j", "move(1)", "Down", show=False),
        Binding("up,k", "move(-1)", "Up", show=False),
        Binding("pagedown", "page(1)", "Page down", show=False),
        Binding("pageup", "page(-1)", "Page up", show=False),
        Binding("home,g", "first", "First", show=False),
        Binding("end,G", "last", "Last", show=False),
    ]
    HEAD = 0
    """Lines on top that stay where they are."""

    def __init__(self, title: str = "", *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(title, id=id)
        self._cursor = 0
        self._lines = 0

    @property
    def cursor(self) -> int:
        """The chosen line, counted from the first of all."""
        return self._cursor

    @cursor.setter
    def cursor(self, line: int) -> None:
        self._cursor = max(0, min(line, self._lines - 1))
        page = self.page
        top = self.scroll_offset.y
        wanted = min(max(top, self._cursor - page + 1), self._cursor)
        if wanted != top:
            self.scroll_to(y=wanted, animate=False, force=True)
        self.refresh()

    @property
    def page(self) -> int:
        """Lines in sight."""
        return max(1, self.size.height - self.HEAD)

    def hold_lines(self, lines: int) -> None:
        """Let there be `lines` to choose from; the cursor stays where it is, if it can."""
        self.measure_lines(lines)
        self.refresh()

    def measure_lines(self, lines: int) -> None:
        """Let there be `lines`, where those in sight look as they did."""
        self._lines = lines
        self._cursor = max(0, min(self._cursor, lines - 1))
        self.measure(lines + self.HEAD)

    def chosen(self) -> None:
        """Somebody has moved the cursor."""

    def action_open(self) -> None:
        """Enter, or a double click on the line."""

    def action_move(self, lines: int) -> None:
        """Move the cursor."""
        self._choose(self._cursor + lines)

    def action_page(self, pages: int) -> None:
        """Move the cursor by what is in sight."""
        self._choose(self._cursor + pages * self.page)

    def action_first(self) -> None:
        """Move the cursor to the first line."""
        self._choose(0)

    def action_last(self) -> None:
        """Move the cursor to the last line."""
        self._choose(self._lines - 1)

    def on_click(self, event: events.Click) -> None:
        """Choose the line under the mouse."""
        offset = event.get_content_offset(self)
        if offset is None or offset.y < self.HEAD:
            return
        line = self.scroll_offset.y + offset.y - self.HEAD
        if line < self._lines:
            self._choose(line)
            if event.chain == 2:
                self.action_open()

    def _choose(self, line: int) -> None:
        self.cursor = line
        self.chosen()

    def on_focus(self) -> None:
        """The cursor looks different."""
        self.refresh()

    def on_blur(self) -> None:
        """The cursor looks different."""
        self.refresh()
