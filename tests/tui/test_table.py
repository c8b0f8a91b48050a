"""The table: what is in sight, where the cursor goes, what it tells, and what many rows cost."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from rich.cells import cell_len
from rich.text import Text
from textual.app import App
from textual.strip import Strip

from tests.parts.tui_pictures import HOSTILE, SIZES, Alone, alone, assert_harmless, on_screen, picture
from tests.parts.work import calls
from tui.widgets.lines import Cell, fit
from tui.widgets.table import Column, Table, brace, fitting_columns

COLUMNS = (
    Column("id", "episode", 8),
    Column("task", "task", 0, 1),
    Column("turn", "turn", 4, 2, right=True),
    Column("age", "age", 6, 3, right=True),
)


def row(at: int) -> list[Cell]:
    """The cells of row `at`."""
    return [f"e{at}", f"retail/{at}", str(at % 30), Text(f"{at}.0s", "red")]


def show(table: Table, total: int, top: int = 0, rows: int = 60) -> None:
    """Answer with the window from `top`."""
    here = range(top, min(top + rows, total))
    table.show([row(at) for at in here], top=top, total=total, ids=[f"e{at}" for at in here])


def opened(app: App[None]) -> list[str]:
    """The ids that the table told, in order."""
    assert isinstance(app, Alone)
    return [message.id for message in app.heard if isinstance(message, Table.Opened)]


def looked(app: App[None]) -> tuple[int, int]:
    """The window that the table last asked for."""
    assert isinstance(app, Alone)
    message = [message for message in app.heard if isinstance(message, Table.Looked)][-1]
    return message.top, message.rows


async def test_header_rows_and_cursor() -> None:
    """Columns stand below their titles, numbers on the right; a mark shows the cursor without colour."""
    table = Table(COLUMNS)
    async with alone(table, (45, 7)):
        table.sorted_by = ("age", True)
        show(table, 2)
        assert picture(table) == [
            " episode  task                 turn   age↓",
            "▸e0       retail/0                0   0.0s",
            " e1       retail/1                1   1.0s",
            "",
            "",
        ]
        table.sorted_by = ("task", False)
        assert picture(table)[0] == " episode  task↑                turn    age"
        styles = {part.style.reverse for part in table.render_line(1) if part.style and part.text.strip()}
        assert styles == {True}


@pytest.mark.parametrize("total", [0, 1, 10_000, 100_000])
async def test_the_cursor_keeps_within_the_rows(total: int) -> None:
    """Keys at both ends, with as many rows as there may be."""
    table = Table(COLUMNS)
    last = max(0, total - 1)
    async with alone(table, (60, 13)) as pilot:
        show(table, total)
        page = table.size.height - 1
        for keys, line in [
            ("k", 0),
            ("pageup", 0),
            ("j", min(1, last)),
            ("down", min(2, last)),
            ("up", min(1, last)),
            ("pagedown", min(1 + page, last)),
            ("G", last),
            ("j", last),
            ("pagedown", last),
            ("g", 0),
            ("end", last),
            ("home", 0),
        ]:
            await pilot.press(keys)
            assert table.cursor == line, keys
            assert 0 <= line - table.scroll_offset.y < page, keys
        await pilot.press("G")
        assert table.scroll_offset.y == max(0, total - page)
        assert table.cursor_id == (None if total in {0, 10_000, 100_000} else "e0")
        show(table, total, top=table.scroll_offset.y)
        assert table.cursor_id == (f"e{last}" if total else None)
        assert len([line for line in picture(table) if line]) == 1 + min(total, page)


async def test_lines_that_are_not_held_are_blank_until_the_answer() -> None:
    """Scrolling asks for the window in sight; resizing too; each is asked for once."""
    table = Table(COLUMNS)
    async with alone(table, (60, 13)) as pilot:
        show(table, 1_000)
        await pilot.pause()
        assert looked(pilot.app) == (0, 10)
        table.scroll_to(y=500, animate=False)
        await pilot.pause()
        assert looked(pilot.app) == (500, 10)
        assert picture(table)[1:] == [""] * 10
        show(table, 1_000, top=495)
        assert picture(table)[1].startswith(" e500 ")
        await pilot.resize_terminal(60, 23)
        await pilot.pause()
        assert looked(pilot.app) == (500, 20)
        show(table, 30)
        await pilot.pause()
        assert looked(pilot.app) == (10, 20), "fewer rows than before: the end is in sight"


async def test_the_cursor_stays_on_its_line() -> None:
    """Whatever row comes to stand there, as long as there are as many."""
    table = Table(COLUMNS)
    async with alone(table) as pilot:
        show(table, 20)
        await pilot.press("j", "j")
        ids = [f"e{at}" for at in (5, 2, 7, 8)]
        rows = [row(0)] * 4
        table.show(rows, top=0, total=4, ids=ids)
        assert (table.cursor, table.cursor_id) == (2, "e7")
        table.show(rows[:2], top=0, total=2, ids=ids[:2])
        assert (table.cursor, table.cursor_id) == (1, "e2")
        table.show([], top=0, total=0, ids=[])
        assert (table.cursor, table.cursor_id) == (0, None)


async def test_enter_and_a_double_click_open() -> None:
    """The row under the cursor or the mouse; the header and the empty rest open nothing."""
    table = Table(COLUMNS)
    async with alone(table) as pilot:
        await pilot.press("enter")
        show(table, 3)
        await pilot.press("j", "enter")
        assert opened(pilot.app) == ["e1"]
        await pilot.click(table, offset=(5, 4))
        assert (table.cursor, opened(pilot.app)) == (2, ["e1"])
        await pilot.click(table, offset=(5, 2), times=2)
        assert (table.cursor, opened(pilot.app)) == (0, ["e1", "e0"])
        await pilot.click(table, offset=(5, 1), times=2)
        await pilot.click(table, offset=(5, 8), times=2)
        await pilot.click(table, offset=(0, 0), times=2)
        assert (table.cursor, opened(pilot.app)) == (0, ["e1", "e0"])


async def test_a_resized_table_keeps_its_cursor_in_sight_at_the_next_key() -> None:
    """And drops columns from the least important on."""
    table = Table(COLUMNS)
    async with alone(table, (60, 13)) as pilot:
        show(table, 100)
        await pilot.press("pagedown")
        await pilot.resize_terminal(27, 7)
        await pilot.pause()
        assert picture(table)[0] == " episode  task      turn"
        await pilot.press("j")
        assert 0 <= table.cursor - table.scroll_offset.y < 4


async def test_a_picture_draws_only_the_rows_that_changed() -> None:
    """Of those in sight; rows beyond, and a picture like the one before, draw nothing."""
    drawn: list[int] = []

    class Watched(Table):
        def line(self, y: int) -> Strip:
            drawn.append(y)
            return super().line(y)

    table = Watched(COLUMNS)
    async with alone(table, (60, 13)) as pilot:

        async def redrawn(changed: Sequence[int], total: int = 30) -> list[int]:
            rows = [[*row(at)[:-1], f"{len(changed)}s"] if at in changed else row(at) for at in range(30)]
            table.show(rows, top=0, total=total, ids=[f"e{at}" for at in range(30)])
            table.foot = f"{total:,} rows"
            drawn.clear()
            await pilot.pause()
            return sorted(set(drawn))

        show(table, 30)
        await pilot.press("G")
        top = table.scroll_offset.y
        assert await redrawn([top, top + 3]) == [top, top + 3]
        assert " 2s" in on_screen(pilot).splitlines()[2 + 3]
        assert await redrawn([top, top + 3]) == []
        assert await redrawn([]) == [top, top + 3]
        assert await redrawn([0, top - 1]) == []
        assert len(await redrawn([], 100_000)) == 10, "the thumb of the scroll bar has changed: all is laid out again"
        assert await redrawn([top + 1], 100_001) == [top + 1]
        assert "─ 100,001 rows ─" in on_screen(pilot).splitlines()[-1]
        assert table.max_scroll_y == 100_002 - 11
        assert await redrawn([], 25)
        assert (table.cursor, table.scroll_offset.y) == (24, 25 - 10), "fewer rows than the cursor's"
        table.show([], top=0, total=0, ids=[])
        await pilot.pause()
        drawn.clear()
        table.show([], top=0, total=0, ids=[])
        await pilot.pause()
        assert not drawn, "a table that stays empty"
        table.show([], top=0, total=5, ids=[])
        await pilot.pause()
        assert drawn, "there is a cursor now"


def test_columns_that_fit() -> None:
    """The flexible one takes the rest, the last to go are cut."""
    assert fitting_columns(COLUMNS, 40) == [(0, 8), (1, 18), (2, 4), (3, 6)]
    assert fitting_columns(COLUMNS, 28) == [(0, 8), (1, 6), (2, 4), (3, 6)]
    assert fitting_columns(COLUMNS, 27) == [(0, 8), (1, 12), (2, 4)]
    assert fitting_columns(COLUMNS, 9) == [(0, 8)]
    assert fitting_columns(COLUMNS, 5) == [(0, 4)]
    assert fitting_columns(COLUMNS, 0) == [(0, 0)]
    assert fitting_columns((), 9) == []


def test_braces() -> None:
    """One over the rows of a group."""
    groups = ["a", "b", "b", "b", "c", "c"]
    pairs = zip([None, *groups], groups, [*groups[1:], None], strict=False)
    assert "".join(brace(here == before, here == after) for before, here, after in pairs) == " ╭│╰╭╰"


@pytest.mark.parametrize("text", ["abc", "界界", *HOSTILE])
@pytest.mark.parametrize("right", [False, True])
def test_a_styled_cell_fits_as_text_does(text: str, right: bool) -> None:
    """With its styles on the same characters."""
    cell = Text("a", "bold").append(text, "red")
    for width in (0, 1, 2, 5, 9):
        fitted, same = fit(cell, width, right=right), fit(cell.plain, width, right=right)
        assert fitted.plain == same.plain
        assert cell_len(fitted.plain) == width
        assert all(0 <= span.start < span.end <= len(fitted.plain) for span in fitted.spans)
    start = 6 if right else 1
    assert fit(Text("ab", spans=Text("a").append("b", "red").spans), 7, right=right).spans[0][:2] == (start, start + 1)


@pytest.mark.parametrize("size", SIZES)
async def test_hostile_cells_at_any_size(size: tuple[int, int]) -> None:
    """Come out literal and harmless, in titles and feet too, and nothing is too small."""
    table = Table([*COLUMNS, Column("last", "\x1b[31m[red]", 30, 9)])
    rows: Sequence[Sequence[Cell]] = [[text, Text(text, "red"), text, Text(text)] for text in HOSTILE]
    async with alone(table, size) as pilot:
        for text in HOSTILE:
            table.title = table.foot = text
        table.title = HOSTILE[0]
        table.show([*rows, []], top=0, total=len(rows) + 1, ids=[*HOSTILE, "short"])
        await pilot.press("j", "G", "g", "enter")
        assert_harmless([*picture(table), on_screen(pilot)])
        if size[0] >= 80:
            assert "[red]x[/]" in picture(table)[1]
            assert "─ [red]x[/] ─" in on_screen(pilot)


async def test_a_hundred_thousand_rows_cost_as_much_as_fifty() -> None:
    """What a picture costs is bound by what is in sight."""

    def shown(total: int) -> None:
        show(table, total, top=table.scroll_offset.y)
        picture(table)

    table = Table(COLUMNS)
    async with alone(table, (160, 50)) as pilot:
        few = calls(lambda: shown(50))
        show(table, 100_000)
        await pilot.press("G", "pageup")
        assert calls(lambda: shown(100_000)) < 1.5 * few
