"""Numbers at a glance."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text
from textual.geometry import Size

from tui.text import cut, fitted
from tui.theme import QUIET, STRONG
from tui.widgets.lines import Lines

_CELLS = 20  # that a tile gets at least


class Tiles(Lines, can_focus=False):
    """Each tile a label with a value, and a note below; as many side by side as fit, evenly."""

    DEFAULT_CSS = """
    Tiles { height: auto; border: none; overflow: hidden; }
    """

    def __init__(self, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._tiles: Sequence[tuple[str, str, str]] = ()

    def show(self, tiles: Sequence[tuple[str, str, str]]) -> None:
        """Draw tiles of a label, a value and a note."""
        if tiles == self._tiles:
            return
        again = len(tiles) != len(self._tiles)
        self._tiles = tiles
        self.refresh(layout=again)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:  # noqa: ARG002 - Textual's
        """Two lines for each row of tiles."""
        return 2 * self._rows(width)

    def line(self, y: int) -> Text:
        """The labels and values, or the notes, of a row of tiles."""
        width = self.cells
        rows = self._rows(width)
        across = max(1, -(-len(self._tiles) // rows))
        cells = max(1, width // across)
        line = Text()
        for label, value, note in self._tiles[y // 2 * across : (y // 2 + 1) * across]:
            if y % 2:
                line.append(cut(note, cells - 1) + " ", QUIET)
                continue
            name, _ = fitted(label, cells - 1)
            head = Text.assemble((name, QUIET), " " * bool(name))
            head.append(cut(value, max(0, cells - 1 - head.cell_len)) + " ", STRONG)
            line.append_text(head)
        return line

    def _rows(self, width: int) -> int:
        return max(1, -(-len(self._tiles) // max(1, width // _CELLS)))
