"""The line in which a filter, or what to look for, is written."""

from __future__ import annotations

from textual.widget import Widget
from textual.widgets import Input


class Line(Input):
    """At the bottom of a screen, and only while somebody writes in it."""

    def open(self, value: str | None = None) -> None:
        """Show it, with this in it; the next key is written already."""
        self.display = True
        if value is not None:
            self.value = value
        self.screen.set_focus(self)

    def close(self, back: Widget) -> None:
        """Hide it; `back` has the keys again."""
        self.display = False
        self.screen.set_focus(back)
