"""What all live episodes wait for, as one bar."""

from __future__ import annotations

from collections.abc import Mapping

from rich.text import Text

from tui.text import count, cut
from tui.theme import PHASE_LOOKS
from tui.widgets.lines import Lines


def phase_cells(counts: Mapping[str, int], width: int) -> dict[str, int]:
    """Cells for each phase that waits for something: in proportion, one at least while there are enough."""
    live = {phase: n for phase in PHASE_LOOKS if phase != "done" and (n := counts.get(phase, 0)) > 0}
    total = sum(live.values())
    cells = {phase: max(1, n * width // total) for phase, n in live.items()}
    while cells and (spare := width - sum(cells.values())):
        if spare > 0:
            cells[max(cells, key=lambda phase: live[phase] * width / total - cells[phase])] += 1
        else:
            cells[max(cells, key=lambda phase: (cells[phase], -live[phase]))] -= 1
    return cells


class PhaseBar(Lines, can_focus=False):
    """Two lines: the bar, and what its parts mean. Episodes that are done count only in the second."""

    DEFAULT_CSS = """
    PhaseBar { height: 2; border: none; overflow: hidden; }
    """

    def __init__(self, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._counts: Mapping[str, int] = {}

    def show(self, counts: Mapping[str, int]) -> None:
        """Draw episodes by phase."""
        if counts != self._counts:
            self._counts = counts
            self.refresh()

    def line(self, y: int) -> Text:
        """The bar or the legend."""
        width = self.cells
        if y == 0:
            cells = phase_cells(self._counts, width)
            return Text.assemble(
                *((PHASE_LOOKS[phase].glyph * n, PHASE_LOOKS[phase].style) for phase, n in cells.items())
            )
        return self._legend(width) if y == 1 else Text()

    def _legend(self, width: int) -> Text:
        """In words, or letters where the words do not fit."""
        looks = [(look, self._counts[phase]) for phase, look in PHASE_LOOKS.items() if phase in self._counts]
        for gap, form in (("   ", "{0.letter} {0.name} {1:,}"), ("  ", "{0.letter} {1:,}"), (" ", "{0.letter}{2}")):
            legend = Text(gap).join(Text(form.format(look, n, count(n)), look.style) for look, n in looks)
            if legend.cell_len <= width:
                return legend
        return Text(cut(legend.plain, width))
