"""Curves in braille and horizontal bars."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter

from rich.text import Text

from tui.text import count, cut, fitted
from tui.theme import CURVE, QUIET
from tui.widgets.lines import Lines

Point = tuple[float, float | None]
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # of a braille cell, by column and row
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_ROOM_FOR_LABELS = 16
_MOST_FIGURE = 1e12


def figure(value: float) -> str:
    """A number in few cells: 0.523, 5.1, 11.2k, 3.1e-07."""
    if not math.isfinite(value):
        return "—"
    if abs(value) >= _MOST_FIGURE:
        return f"{value:.1e}"
    return count(value) if abs(value) >= 1_000 else f"{value:.3g}"


def thinned(points: Sequence[Point], columns: int) -> list[list[tuple[float, float]]]:
    """The unbroken stretches of `points`, of each of `columns` only the lowest and the highest; x from 0 to 1.

    A value that is no number breaks the curve."""
    xs = [x for x, _ in points if math.isfinite(x)]
    first, last = min(xs, default=0.0), max(xs, default=0.0)
    span = last - first or 1.0
    stretches: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if y is None or not (math.isfinite(x) and math.isfinite(y)):
            stretches.append([])
        else:
            stretches[-1].append(((x - first) / span, y))
    return [_extremes(stretch, columns) for stretch in stretches if stretch]


def _extremes(stretch: Sequence[tuple[float, float]], columns: int) -> list[tuple[float, float]]:
    kept = []
    for _, group in groupby(stretch, key=lambda point: int(point[0] * (columns - 0.001))):
        points = list(group)
        kept += sorted({min(points, key=itemgetter(1)), max(points, key=itemgetter(1))})
    return kept


def drawn_curves(stretches: Sequence[Sequence[tuple[float, float]]], columns: int, rows: int) -> list[str]:
    """Curves as `rows` lines of `columns` braille cells, the lowest value at the bottom."""
    ys = [y for stretch in stretches for _, y in stretch]
    low, high = min(ys, default=0.0), max(ys, default=0.0)
    cells = [[0] * columns for _ in range(rows)]
    wide, tall = columns * 2 - 1, rows * 4 - 1
    span = high / 2 - low / 2  # halves: of two huge values the difference alone would be infinite
    for stretch in stretches:
        before = None
        for x, y in stretch:
            up = (y / 2 - low / 2) / span if span else 0.5
            now = (round(x * wide), tall - round(up * tall))
            for dot_x, dot_y in _between(before or now, now):
                cells[dot_y // 4][dot_x // 2] |= _DOTS[dot_x % 2][dot_y % 4]
            before = now
    return ["".join(chr(0x2800 + dots) if dots else " " for dots in row) for row in cells]


def _between(a: tuple[int, int], b: tuple[int, int]) -> list[tuple[int, int]]:
    steps = max(abs(b[0] - a[0]), abs(b[1] - a[1]), 1)
    return [
        (a[0] + round((b[0] - a[0]) * n / steps), a[1] + round((b[1] - a[1]) * n / steps)) for n in range(steps + 1)
    ]


class Chart(Lines):
    """A curve; its newest value stands in the foot."""

    def __init__(self, title: str, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(title, id=id)
        self._points: Sequence[Point] = ()
        self._picture: list[Text] = []

    def show(self, points: Sequence[Point]) -> None:
        """Draw `points`, in the order of their x."""
        if points == self._points:
            return
        self._points = points
        newest = next((y for _, y in reversed(points) if y is not None and math.isfinite(y)), None)
        self.foot = "" if newest is None else figure(newest)
        self._draw()

    def line(self, y: int) -> Text:
        """A line of the picture."""
        return self._picture[y] if y < len(self._picture) else Text()

    def on_resize(self) -> None:
        """More or less room."""
        self._draw()

    def _draw(self) -> None:
        width, height = self.cells, self.size.height
        if not width or not height:
            return
        ys = [y for _, y in self._points if y is not None and math.isfinite(y)]
        labels = [""] * height
        middle = (2 * height - 1) // 4  # where a level curve runs
        if ys and width >= _ROOM_FOR_LABELS:
            labels[-1], labels[0] = figure(min(ys)), figure(max(ys))
            if min(ys) == max(ys):
                labels = [figure(ys[0]) if row == middle else "" for row in range(height)]
        margin = max(map(len, labels))
        margin += bool(margin)
        curve = drawn_curves(thinned(self._points, width - margin), width - margin, height)
        if not ys:
            labels = [cut("no values yet", width) if row == middle else "" for row in range(height)]
        self._picture = [
            Text.assemble(
                (cut(label, max(0, margin - 1), right=True) if ys else label, QUIET), " " * bool(margin), (line, CURVE)
            )
            for label, line in zip(labels, curve, strict=True)
        ]
        self.refresh()


class Bars(Lines):
    """Shares as horizontal bars."""

    def __init__(self, title: str, id: str | None = None) -> None:  # noqa: A002
        super().__init__(title, id=id)
        self._bars: Sequence[tuple[str, float, str]] = ()

    def show(self, rows: Sequence[tuple[str, float, str]]) -> None:
        """Draw rows of a label, a share from 0 to 1, and a text."""
        if rows != self._bars:
            self._bars = rows
            self.hold(len(rows))

    def line(self, y: int) -> Text:
        """A bar between its label and its text."""
        if y >= len(self._bars):
            return Text()
        width = self.cells
        labels = max(width - fitted(label, width)[1] for label, _, _ in self._bars)
        texts = max(width - fitted(text, width)[1] for _, _, text in self._bars)
        texts = min(texts, width // 2)
        labels = min(labels, max(0, width - texts - 2) // 2)
        room = max(0, width - labels - texts - 2)
        label, share, text = self._bars[y]
        eighths = round(min(1.0, max(0.0, share if math.isfinite(share) else 0.0)) * room * 8)
        bar = "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
        return Text.assemble(
            cut(label, labels), " ", (cut(bar, room), CURVE), " ", (cut(text, texts, right=True), QUIET)
        )
