"""Lines of text in a frame, wrapped, to scroll in where they do not fit."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text
from textual.geometry import Size

from tui.widgets.lines import Lines, harmless


class Facts(Lines):
    """What a screen says in a few lines."""

    def __init__(self, title: str, *, id: str | None = None) -> None:  # noqa: A002 - as Textual calls it
        super().__init__(title, id=id)
        self._facts: Sequence[Text] = ()
        self._wrapped: list[Text] = []

    def show(self, facts: Sequence[Text]) -> None:
        """Draw these."""
        if facts != self._facts:
            self._facts = facts
            self._wrap()

    def on_resize(self) -> None:
        """Lines break elsewhere now."""
        self._wrap()

    def _wrap(self) -> None:
        self._wrapped = self._lines_of(self.cells)
        self.hold(len(self._wrapped))

    def _lines_of(self, width: int) -> list[Text]:
        console = self.app.console
        return [line for fact in self._facts for line in harmless(fact).wrap(console, max(1, width))]

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:  # noqa: ARG002 - Textual's
        """As many lines as there will be at that width, which need not be the one that they are drawn in now."""
        return max(1, len(self._lines_of(width)))

    def line(self, y: int) -> Text:
        """One of them."""
        return self._wrapped[y] if y < len(self._wrapped) else Text()
