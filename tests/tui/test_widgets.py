"""Charts, bars, the histogram, facts, the phase bar and the tiles, as text."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text
from textual.app import App

from tests.parts.tui_pictures import HOSTILE, SIZES, Alone, alone, assert_harmless, on_screen, picture
from tui.theme import PHASE_LOOKS
from tui.widgets.chart import Bars, Chart, drawn_curves, figure, thinned
from tui.widgets.facts import Facts
from tui.widgets.histogram import Histogram
from tui.widgets.lines import Cell, Lines
from tui.widgets.phasebar import PhaseBar, phase_cells
from tui.widgets.table import Column, Table
from tui.widgets.tiles import Tiles


async def test_a_curve() -> None:
    """From the lowest at the bottom to the highest on top, both named; the newest value in the foot."""
    chart = Chart("reward")
    async with alone(chart, (22, 6)) as pilot:
        chart.show([(step, step / 10) for step in range(9)])
        assert picture(chart) == ["0.8             ⢀⠤⠔⠉", "           ⢀⣀⠤⠔⠉⠁", "       ⢀⣀⠔⠒⠁", "  0 ⣀⠔⠒⠁"]
        assert "─ 0.8 ─" in on_screen(pilot)


@pytest.mark.parametrize(
    ("points", "lines"),
    [
        ([], ["", "no values yet", "", ""]),
        ([(3, math.nan), (4, None)], ["", "no values yet", "", ""]),
        ([(3, 5.1)], ["", "5.1 ⡀", "", ""]),
        ([(0, -1), (9, -1)], ["", "-1 " + "⣀" * 17, "", ""]),
    ],
)
async def test_hardly_a_curve(points: list[tuple[float, float | None]], lines: list[str]) -> None:
    """No point, one, or always the same: nothing is invented."""
    chart = Chart("x")
    async with alone(chart, (22, 6)) as pilot:
        chart.show(points)
        assert picture(chart) == lines
        assert chart.foot == ("" if "no values yet" in lines else figure(float(points[-1][1] or 0)))
        await pilot.resize_terminal(12, 3)
        await pilot.pause()
        assert len(picture(chart)) == 1


async def test_a_gap_is_left_open() -> None:
    """Where there is no number there is no line."""
    chart = Chart("x")
    async with alone(chart, (22, 3)):
        chart.show([(0, 1), (4, 1), (5, math.nan), (6, None), (8, 1), (9, math.inf), (10, 1)])
        assert picture(chart) == ["1 ⠒⠒⠒⠒⠒⠒⠒⠂      ⠂  ⠐"]


@given(
    st.lists(st.tuples(st.floats(0, 1e6), st.none() | st.floats()), max_size=80),
    st.integers(1, 40),
    st.integers(1, 8),
)
def test_any_points_can_be_drawn(points: list[tuple[float, float | None]], columns: int, rows: int) -> None:
    """The picture has its size; the extremes are kept, and no more than two points a column and stretch."""
    points.sort(key=lambda point: point[0])
    stretches = thinned(points, columns)
    lines = drawn_curves(stretches, columns, rows)
    assert [len(line) for line in lines] == [columns] * rows
    ys = [y for _, y in points if y is not None and math.isfinite(y)]
    kept = [y for stretch in stretches for _, y in stretch]
    assert all(len(stretch) <= 2 * columns for stretch in stretches)
    assert (min(kept, default=0), max(kept, default=0)) == (min(ys, default=0), max(ys, default=0))
    assert any(line.strip() for line in lines) == bool(ys)


def test_figures() -> None:
    """Few cells for any number."""
    values = [0, 0.5231, 5.1, 999, 11_240, 3.14e-7, 4e300, -1.7e308, math.nan]
    assert [figure(value) for value in values] == [
        "0",
        "0.523",
        "5.1",
        "999",
        "11.2k",
        "3.14e-07",
        "4.0e+300",
        "-1.7e+308",
        "—",
    ]


async def test_bars() -> None:
    """Proportional to an eighth of a cell; a share that is none or too large is drawn as far as it goes."""
    bars = Bars("staleness")
    async with alone(bars, (32, 7)):
        bars.show([("0", 0.5, "50 %"), ("1", 1, "100 %"), ("22", 0.01, "1 %"), ("3", math.nan, "—"), ("4", 7, "")])
        assert picture(bars) == [
            "0  ██████████▌            50 %",
            "1  █████████████████████ 100 %",
            "22 ▎                       1 %",
            "3                            —",
            "4  █████████████████████",
        ]


async def test_a_histogram() -> None:
    """A bar for each bin over an axis from 0 to 1; a single one shows too."""
    histogram = Histogram("rewards")
    async with alone(histogram, (22, 6)):
        histogram.show([0, 1, 0, 1_000, 500])
        assert picture(histogram) == [
            "            ███",
            "            ███ ▄▄▄",
            "    ▁▁▁     ███ ███",
            "0        .5        1",
        ]
        histogram.show([])
        assert picture(histogram) == [""] * 4


def picked(app: App[None]) -> list[tuple[float, float]]:
    """The bounds that the histogram told."""
    assert isinstance(app, Alone)
    return [(message.low, message.high) for message in app.heard if isinstance(message, Histogram.Picked)]


async def test_picking_a_bin() -> None:
    """With arrows and enter, or the mouse; the foot names the bin."""
    histogram = Histogram("rewards")
    async with alone(histogram, (22, 6)) as pilot:
        await pilot.press("enter", "right")
        histogram.show(range(20))
        await pilot.press("left", "enter")
        histogram.action_move(30)
        await pilot.press("enter", "left", "enter")
        assert picked(pilot.app) == [(0, 0.05), (0.95, 1), (0.9, 0.95)]
        assert histogram.foot == "0.90-0.95: 18"
        chosen = [part for part in histogram.render_line(0) if part.style and part.style.reverse]
        assert [part.text for part in chosen] == ["▇"]
        await pilot.click(histogram, offset=(6, 2))
        await pilot.press("enter")
        assert picked(pilot.app)[-1] == (0.25, 0.3)
        await pilot.resize_terminal(9, 6)
        await pilot.pause()
        await pilot.press("enter", "right", "enter")
        assert picked(pilot.app)[-2:] == [(0.15, 0.3), (0.3, 0.45)]
        histogram.show([1])
        await pilot.press("enter")
        assert picked(pilot.app)[-1] == (0, 1)


COUNTS = {"queued": 35, "policy": 1_889, "tool": 1_366, "user": 618, "scoring": 180, "done": 71}


async def test_the_phase_bar() -> None:
    """A glyph for each phase beside its colour; the legend folds to letters, and what is done is in no bar."""
    bar = PhaseBar()
    async with alone(bar, (100, 5)) as pilot:
        bar.show(COUNTS)
        assert picture(bar) == [
            "█" * 46 + "▓" * 34 + "▒" * 15 + "░" * 4 + "·",
            "P policy 1,889   T tool 1,366   U user 618   S scoring 180   Q queued 35   D done 71",
        ]
        await pilot.resize_terminal(50, 5)
        await pilot.pause()
        assert picture(bar)[1] == "P 1,889  T 1,366  U 618  S 180  Q 35  D 71"
        await pilot.resize_terminal(20, 5)
        await pilot.pause()
        assert picture(bar)[1] == "P1,889 T1,366 U618 …"
        bar.show({"done": 9})
        assert picture(bar) == ["", "D done 9"]
        bar.show({})
        assert picture(bar) == ["", ""]


@given(st.dictionaries(st.sampled_from([*PHASE_LOOKS, "else"]), st.integers(0, 10_000)), st.integers(0, 120))
def test_shares_fill_the_bar(counts: dict[str, int], width: int) -> None:
    """Exactly, in the order of the legend, and nobody who waits is left out while there is room."""
    cells = phase_cells(counts, width)
    live = {phase: counts[phase] for phase in PHASE_LOOKS if phase != "done" and counts.get(phase)}
    assert list(cells) == list(live)
    assert sum(cells.values()) == (width if live else 0)
    assert all(n >= (width >= len(live)) for n in cells.values())
    if width > 20:
        assert all(abs(n - live[phase] * width / sum(live.values())) < 5 for phase, n in cells.items())


TILES = [
    ("live", "3,912/4,096", "in groups 489"),
    ("turns/s", "618", "p50 1.4s p99 6.8"),
    ("tok/s", "11.2k", "prefix hit 87 %"),
    ("reward", ".523 ▲.014", "solved 41 %"),
    ("staleness", "1.4 max 3", "queue to learner 3"),
    ("dropped", "12", "GPU 94 % 118G"),
]


@pytest.mark.parametrize(("width", "across", "height"), [(160, 6, 2), (120, 6, 2), (80, 3, 4), (40, 2, 6), (9, 1, 12)])
async def test_tiles_fold_evenly(width: int, across: int, height: int) -> None:
    """Six beside each other, three at 80 cells, and as high as that takes."""
    tiles = Tiles()
    async with alone(tiles, (width, 14)) as pilot:
        tiles.show(TILES)
        await pilot.pause()
        lines = picture(tiles)
        assert len(lines) == height
        assert lines[0].count("live") == 1
        if width >= 40:
            assert all(name in lines[at // across * 2] for at, (name, _, _) in enumerate(TILES))
            assert all(TILES[at][2] in lines[at // across * 2 + 1] for at in range(6))
        tiles.show([])
        await pilot.pause()
        assert picture(tiles) == ["", ""]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("make", "fill"),
    [
        (lambda: Chart("c"), lambda widget, _: widget.show([(0, 1), (1, 2)])),
        (lambda: Bars("b"), lambda widget, text: widget.show([(text, 0.5, text), (text, 0.1, "1 %")])),
        (lambda: Histogram("h"), lambda widget, _: widget.show(range(20))),
        (PhaseBar, lambda widget, _: widget.show(COUNTS)),
        (Tiles, lambda widget, text: widget.show([(text, text, text), ("a", text, "")])),
    ],
    ids=["chart", "bars", "histogram", "phasebar", "tiles"],
)
async def test_hostile_text_at_any_size(
    size: tuple[int, int], make: Callable[[], Lines], fill: Callable[[Lines, str], None]
) -> None:
    """Comes out literal and harmless, in titles and feet too, and nothing is too small."""
    widget = make()
    async with alone(widget, size) as pilot:
        for text in HOSTILE:
            widget.title = text
            fill(widget, text)
            widget.foot = text
            await pilot.pause()
            assert_harmless([*picture(widget), on_screen(pilot)])
            # A phase bar shows nobody's words.
            if size[0] >= 80 and not isinstance(widget, PhaseBar) and "[" in text and "\x1b" not in text:
                assert text in on_screen(pilot)


@pytest.mark.parametrize(
    ("widget", "one", "other"),
    [
        (lambda: Chart("c"), [(0, 1.0)], [(0, 2.0)]),
        (lambda: Bars("b"), [("0", 0.5, "50 %")], [("0", 0.6, "60 %")]),
        (lambda: Histogram("h"), (1, 2), (2, 1)),
        (PhaseBar, COUNTS, {**COUNTS, "tool": 1}),
        (Tiles, [("live", "3", "")], [("live", "4", "")]),
        (lambda: Rows("t"), Text("1", "red"), Text("1", "bold red")),
    ],
    ids=["chart", "bars", "histogram", "phasebar", "tiles", "table"],
)
async def test_only_what_has_changed_is_drawn_again(
    widget: Callable[[], Lines], one: object, other: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that has ended costs nothing to look at."""
    made: Any = widget()
    async with alone(made) as pilot:
        made.show(one)
        await pilot.pause()
        drawn: list[int] = []
        monkeypatch.setattr(made, "refresh", lambda *_, **__: drawn.append(1))
        made.show(copy.copy(one))
        assert not drawn
        made.show(other)
        assert drawn


class Rows(Table):
    """A table of one cell."""

    def __init__(self, id: str) -> None:  # noqa: A002 - as Textual calls it
        super().__init__((Column("a", "a", 5),), id=id)

    def show(self, cell: Cell) -> None:  # type: ignore[override]
        """Only this."""
        super().show([[cell]], top=0, total=1, ids=["a"])


def test_curves_cost_what_their_points_cost() -> None:
    """Ten thousand points are thinned to two a column before anything is drawn."""
    points = [(float(at), random.Random(at).random()) for at in range(10_000)]
    stretches = thinned(points, 80)
    assert [len(stretch) for stretch in stretches] == [160]


async def test_without_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under NO_COLOR Textual greys every cell, and the glyphs still tell the phases apart."""
    monkeypatch.setenv("NO_COLOR", "1")
    bar = PhaseBar()
    async with alone(bar, (80, 3)) as pilot:
        bar.show(COUNTS)
        await pilot.pause()
        parts = [part for strip in pilot.app.screen._compositor.render_strips() for part in strip]
        colours = {part.style.color.get_truecolor() for part in parts if part.style and part.style.color}
        assert all(red == green == blue for red, green, blue in colours)
        assert set("█▓▒░·") <= set(on_screen(pilot))


async def test_facts_are_as_high_as_they_will_be() -> None:
    """Where a layout asks, they may still be wrapped to another width."""
    facts = Facts("facts")
    async with alone(facts, (60, 12)):
        facts.show([Text("three words here"), Text("[red]two[/] \x1b[2Jmore")])
        assert picture(facts)[:2] == ["three words here", "[red]two[/] ␛[2Jmore"]
        heights = [facts.get_content_height(facts.size, facts.size, width) for width in (0, 5, 12, 58)]
    assert heights[1:] == [8, 4, 2]
    assert heights[0] > 10


async def test_facts_wrap_again_where_there_is_less_room() -> None:
    """Nothing that was said is lost at the edge."""
    facts = Facts("facts")
    async with alone(facts, (60, 12)) as pilot:
        facts.show([Text("three words here")])
        await pilot.resize_terminal(14, 12)
        await pilot.pause()
        assert picture(facts)[:2] == ["three words", "here"]
