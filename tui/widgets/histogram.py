"""A histogram from 0 to 1 of which a bin can be picked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.text import Text
from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message

from tui.text import count
from tui.theme import CURVE, HIT, QUIET
from tui.widgets.lines import Lines

_EIGHTHS = " ▁▂▃▄▅▆▇█"


class Histogram(Lines):
    """Vertical bars over bins of equal width. Narrow ones draw several bins as one bar."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left,h", "move(-1)", "Lower", show=False),
        Binding("right,l", "move(1)", "Higher", show=False),
        Binding("enter", "pick", "Pick"),
    ]

    class Picked(Message):
        """The rewards from `low` to below `high`; a `high` of 1 includes 1."""

        def __init__(self, low: float, high: float) -> None:
            super().__init__()
            self.low = low
            self.high = high

    def __init__(self, title: str, id: str | None = None) -> None:  # noqa: A002
        super().__init__(title, id=id)
        self._counts: Sequence[int] = ()
        self._bin = 0

    def show(self, counts: Sequence[int]) -> None:
        """Draw the bins."""
        if counts == self._counts:
            return
        self._counts = counts
        self._bin = max(0, min(self._bin, len(counts) - 1))
        self._tell()

    def line(self, y: int) -> Text:
        """A line of bars, or the axis below them."""
        bars, cells = self._bars()
        height = self.size.height
        tall = height - (height > 1)
        if not bars or y >= height:
            return Text()
        chosen = self._bin // self._merged() if self.has_focus else -1
        if y >= tall:
            return Text(_axis(len(bars) * cells), QUIET)
        most = max(1, *bars)
        line = Text()
        for at, n in enumerate(bars):
            eighths = max(round(n / most * tall * 8), 1 if n else 0) - 8 * (tall - 1 - y)
            glyph = _EIGHTHS[max(0, min(8, eighths))]
            gap = " " if cells > 2 else ""
            line.append(glyph * (cells - len(gap)), f"{CURVE} {HIT}" if at == chosen else CURVE).append(gap)
        return line

    def action_move(self, bars: int) -> None:
        """Choose the bar beside."""
        merged = self._merged()
        self._bin = max(0, min((self._bin // merged + bars) * merged, len(self._counts) - 1))
        self._tell()

    def action_pick(self) -> None:
        """Tell the bounds of the chosen bar."""
        if self._counts:
            self.post_message(self.Picked(*self._bounds()))

    def on_click(self, event: events.Click) -> None:
        """Choose the bar under the mouse."""
        offset = event.get_content_offset(self)
        bars, cells = self._bars()
        if offset is not None and bars and offset.x // cells < len(bars):
            self._bin = offset.x // cells * self._merged()
            self._tell()

    def on_focus(self) -> None:
        """The chosen bin shows."""
        self._tell()

    def on_blur(self) -> None:
        """The chosen bin does not show."""
        self._tell()

    def _merged(self) -> int:
        """Bins in a bar."""
        return max(1, -(-len(self._counts) // max(1, self.cells)))

    def _bars(self) -> tuple[list[int], int]:
        """What the bars count, and the cells of each."""
        merged = self._merged()
        bars = [sum(self._counts[at : at + merged]) for at in range(0, len(self._counts), merged)]
        return bars, max(1, self.cells // max(1, len(bars)))

    def _bounds(self) -> tuple[float, float]:
        bins, merged = len(self._counts), self._merged()
        first = self._bin // merged * merged
        return first / bins, min(bins, first + merged) / bins

    def _tell(self) -> None:
        if self.has_focus and self._counts:
            low, high = self._bounds()
            bars, _ = self._bars()
            self.foot = f"{low:.2f}-{high:.2f}: {bars[self._bin // self._merged()]:,}"
        else:
            self.foot = count(sum(self._counts))
        self.refresh()


def _axis(width: int) -> str:
    if width < 8:
        return "0" + " " * (width - 2) + "1" if width > 1 else ""
    middle = width // 2 - 1
    return "0" + " " * (middle - 1) + ".5" + " " * (width - middle - 3) + "1"
