"""A conversation: blocks that fold, wrapped once, in which one can search."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import ClassVar, NamedTuple

from rich.text import Text
from textual.binding import Binding, BindingType

from tui.text import fitted, plain, visible, wrapped
from tui.theme import HIT, HIT_NOW, QUIET, STRONG
from tui.widgets.lines import Choosing

_GUTTER = 2
_MOST_LINES = 2_000  # of one block
_WHO = 12


class Block(NamedTuple):
    """What one party said."""

    who: str
    style: str
    head: str
    """One line about it."""
    text: str | Text
    key: str
    """The same as long as it is the same block, and of no other one, in any conversation."""
    folded: bool = False
    """At first."""


@dataclass(slots=True, kw_only=True)
class _Body:
    """The text of a block, wrapped."""

    text: str | Text
    width: int
    shown: str
    """Visible, as far as it is wrapped."""
    spans: list[tuple[int, int]]
    """Where its lines begin and end."""
    pieces: list[Text]
    """The lines, of a text with styles."""
    rest: int
    """Characters that are not shown."""
    hits: list[tuple[int, int]] = field(default_factory=list)

    def search(self, pattern: re.Pattern[str] | None) -> None:
        self.hits = [match.span() for match in pattern.finditer(self.shown)] if pattern else []

    @property
    def lines(self) -> int:
        return len(self.spans) + bool(self.rest)


def _wrap(text: str | Text, width: int) -> _Body:
    whole = text if isinstance(text, str) else text.plain
    shown, spans, rest = wrapped(whole, width, _MOST_LINES)
    pieces: list[Text] = []
    if isinstance(text, Text) and spans:
        ends = [at for start, end in spans for at in (start, end)]
        styled = Text(shown, text.style, spans=list(text.spans))
        pieces = list(styled.divide(ends))[1::2]
    return _Body(text=text, width=width, shown=shown, spans=spans, pieces=pieces, rest=rest)


class Transcript(Choosing):
    """Blocks below each other: a head, the text, an empty line; one line where folded."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "open", "Fold"),
        Binding("e", "expand(True)", "Expand all"),
        Binding("x", "expand(False)", "Collapse all"),
    ]

    def __init__(self, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.following = False
        """Whether the end stays in sight; moving up ends it."""
        self._blocks: Sequence[Block] = ()
        self._bodies: list[_Body] = []
        self._folds: dict[str, bool] = {}
        self._starts: list[int] = [0]
        self._pattern: re.Pattern[str] | None = None
        self._hit: tuple[int, int] | None = None

    def show(self, blocks: Sequence[Block]) -> None:
        """Draw `blocks`; those that are as they were are not wrapped again. Another conversation begins at its top."""
        other = bool(self._blocks) and [b.key for b in blocks[:1]] != [self._blocks[0].key]
        known = self._known()
        self._blocks = blocks
        if other:
            self._folds.clear()
            self._hit = None
            self._cursor = 0
            self.scroll_to(y=0, animate=False, force=True)
        self._lay(known)

    def text(self) -> str:
        """All of it, folded or not, for copying; in visible characters too."""
        parts = []
        for block in self._blocks:
            whole = block.text if isinstance(block.text, str) else block.text.plain
            parts.append(f"{plain(block.who)} {plain(block.head)}".rstrip() + "\n" + visible(whole).rstrip("\n") + "\n")
        return "\n".join(parts)

    def expand(self, all: bool) -> None:  # type: ignore[override]  # noqa: A002, FBT001
        """Unfold every block, or fold every one."""
        at = self._block_at(self._cursor)
        self._folds = {block.key: not all for block in self._blocks}
        self._arrange()
        self._stand(at, 0)

    def action_expand(self, all: bool) -> None:  # noqa: A002, FBT001
        """Unfold or fold every block."""
        self.expand(all)

    def action_open(self) -> None:
        """Fold the block under the cursor, or unfold it."""
        if self._bodies:
            at = self._block_at(self._cursor)
            self._folds[self._blocks[at].key] = not self._folded(at)
            self._arrange()
            self._stand(at, 0)

    def find(self, pattern: str) -> int:
        """Mark `pattern`, as it is, in upper or lower case, and return how often it occurs; an empty one clears.

        The cursor stays: `next_hit` goes to the first from there."""
        self._pattern = re.compile(re.escape(pattern), re.IGNORECASE) if pattern else None
        self._hit = None
        for body in self._bodies:
            body.search(self._pattern)
        self.refresh()
        return sum(len(body.hits) for body in self._bodies)

    def next_hit(self) -> None:
        """Go to the next occurrence; after the last comes the first."""
        hits = self._hits()
        here = self._hit or self._place(before=1)
        self._go(next((hit for hit in hits if hit > here), hits[0] if hits else None))

    def previous_hit(self) -> None:
        """Go to the occurrence before."""
        hits = self._hits()
        here = self._hit or self._place()
        self._go(next((hit for hit in reversed(hits) if hit < here), hits[-1] if hits else None))

    def chosen(self) -> None:
        """Who moves up wants to read there."""
        self._hit = None
        self.following = self.following and self._cursor >= self._lines - 1

    def on_mouse_scroll_up(self) -> None:
        """Who scrolls up wants to read there."""
        self.following = False

    def on_resize(self) -> None:
        """Wrap to the new width; the cursor stays in its block."""
        if not self.cells:
            return
        at = self._block_at(self._cursor)
        within = self._cursor - self._starts[at]
        self._lay(self._known())
        if not self.following:
            self._stand(at, within)

    def line(self, y: int) -> Text:
        """A line of a head or a text."""
        if not 0 <= y < self._lines:
            return Text()
        at = self._block_at(y)
        block, body, row = self._blocks[at], self._bodies[at], y - self._starts[at] - 1
        mark = "▸" if y == self._cursor and self.has_focus else "▌"
        if row < 0:
            return self._head(block, body, mark, folded=self._folded(at))
        if row >= body.lines:
            return Text(mark if mark == "▸" else "", STRONG)
        line = Text.assemble((mark, block.style), " ")
        if row >= len(body.spans):
            return line.append(f"… (+{body.rest:,})", QUIET)
        start, end = body.spans[row]
        words = body.pieces[row].copy() if body.pieces else Text(body.shown[start:end])
        first = max(0, bisect_right(body.hits, (start, -1)) - 1)
        for low, high in body.hits[first:]:
            if low >= end:
                break
            if high > start:
                words.stylize(HIT_NOW if self._hit == (at, low) else HIT, max(0, low - start), high - start)
        return line.append_text(words)

    def _head(self, block: Block, body: _Body, mark: str, *, folded: bool) -> Text:
        width = self.cells
        line = Text.assemble((mark, block.style), " ", (fitted(block.who, _WHO)[0], f"{STRONG} {block.style}"))
        if block.head:
            line.append("  ").append(plain(block.head, 200), QUIET)
        if folded and body.shown:
            hidden = f"  ⋯ {body.lines} " + ("line" if body.lines == 1 else "lines")
            line.append("  ").append(fitted(body.shown[: 4 * width].strip(), width - line.cell_len - len(hidden))[0])
            line.append(hidden, HIT if body.hits else QUIET)
        return line

    def _folded(self, at: int) -> bool:
        block = self._blocks[at]
        return self._folds.get(block.key, block.folded)

    def _block_at(self, line: int) -> int:
        return max(0, min(bisect_right(self._starts, line) - 1, len(self._blocks) - 1))

    def _known(self) -> dict[str, _Body]:
        return {block.key: body for block, body in zip(self._blocks, self._bodies, strict=False)}

    def _lay(self, known: dict[str, _Body]) -> None:
        """Wrap what is not in `known` as it should be, and arrange all of it."""
        width = max(1, self.cells - _GUTTER)
        bodies = []
        for block in self._blocks if self.cells else ():
            body = known.get(block.key)
            if body is None or body.width != width or body.text != block.text:
                body = _wrap(block.text, width)
                body.search(self._pattern)
            bodies.append(body)
        self._bodies = bodies
        self._arrange()

    def _arrange(self) -> None:
        """Count lines."""
        lines = (1 if self._folded(at) else body.lines + 2 for at, body in enumerate(self._bodies))
        self._starts = list(accumulate(lines, initial=0))
        self.hold_lines(self._starts[-1])
        if self.following:
            self.cursor = self._lines - 1

    def _stand(self, at: int, within: int) -> None:
        """Put the cursor into block `at`, with its line in sight."""
        if at < len(self._bodies):
            self.cursor = min(self._starts[at] + within, self._starts[at + 1] - 1)

    def _hits(self) -> list[tuple[int, int]]:
        return [(at, low) for at, body in enumerate(self._bodies) for low, _ in body.hits]

    def _place(self, *, before: int = 0) -> tuple[int, int]:
        """Where the cursor's line begins, as the place of a hit."""
        at = self._block_at(self._cursor)
        row = self._cursor - self._starts[at] - 1
        if row < 0:
            return at, -before
        spans, end = self._bodies[at].spans, len(self._bodies[at].shown)
        return at, (spans[row][0] if row < len(spans) else end) - before

    def _go(self, hit: tuple[int, int] | None) -> None:
        if hit is None:
            return
        at, low = hit
        if self._folded(at):
            self._folds[self._blocks[at].key] = False
            self._arrange()
        body = self._bodies[at]
        row = bisect_right(body.spans, (low, len(body.shown))) - 1
        self.following = False
        self._stand(at, row + 1)
        self._hit = hit
