"""Widgets alone in an app, and what they look like as text."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from textual.app import App, ComposeResult
from textual.pilot import Pilot
from textual.widget import Widget

import tests.parts.pilots  # noqa: F401 - for what it does
from tui.widgets.lines import Lines

HOSTILE = [
    "[red]x[/]",
    "[@click=app.quit]x[/]",
    "\x1b[2J\x1b]0;title\x07",
    "\u202egpj.exe",
    "\u2066a\u2069",
    "\ud800",
    "e" + "\u0301" * 5_000,
    "👨\u200d👩\u200d👧 ⚠\ufe0f",
    "界" * 200,
    "a\nb\r\nc\td\u2028e",
    "x" * 1_000_000,
]
SIZES = [(1, 1), (3, 3), (9, 4), (80, 24)]


class Alone(App[None]):
    """One widget that fills the screen."""

    def __init__(self, widget: Widget) -> None:
        super().__init__()
        self.widget = widget
        self.heard: list[object] = []

    def compose(self) -> ComposeResult:
        yield self.widget


@asynccontextmanager
async def alone(widget: Widget, size: tuple[int, int] = (60, 12)) -> AsyncIterator[Pilot[None]]:
    """`widget` on a screen of `size`, with the focus if it takes it; its own messages land in `app.heard`."""
    app = Alone(widget)

    def hear(message: object) -> None:
        if type(message).__qualname__.startswith(type(widget).__name__) and message not in app.heard:
            app.heard.append(message)

    async with app.run_test(size=size, message_hook=hear) as pilot:
        widget.focus()
        await pilot.pause()
        yield pilot


def picture(widget: Lines) -> list[str]:
    """The widget's lines, without the space at their ends; each is exactly as wide as the widget."""
    strips = [widget.render_line(y) for y in range(widget.size.height)]
    assert all(strip.cell_length == widget.size.width for strip in strips)
    style = widget.visual_style.rich_style
    assert all(part.style and part.style.bgcolor == style.bgcolor for strip in strips for part in strip)
    return [strip.text.rstrip() for strip in strips]


def on_screen(pilot: Pilot[None]) -> str:
    """All of the screen, borders too, as text."""
    height = pilot.app.size.height
    strips = pilot.app.screen._compositor.render_strips()
    assert len(strips) == height
    return "\n".join("".join(part.text for part in strip) for strip in strips)


def assert_harmless(texts: Sequence[str]) -> None:
    """Nothing in them steers a terminal or hides."""
    for text in texts:
        assert all(c.isprintable() or c == "\n" for c in text), ascii(text[:200])
        text.encode()
        assert "\u0301\u0301\u0301" not in text
