"""Charts, bars, the histogram, the phase bar and the tiles, as text."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from textual.app import App

from tests.tui_pictures import HOSTILE, SIZES, Alone, alone, assert_harmless, on_screen, picture
from tui.theme import PHASES
from tui.widgets.chart import Bars, Chart, drawn, figure, thinned
from tui.widgets.histogram import Histogram
from tui.widgets.lines import Lines
from tui.widgets.phasebar import PhaseBar, shares
from tui.widgets.tiles import Tiles


async def test_a_curve() -> None:
    """From the lowest at the bottom to the highest on top, both named; the newest value in the foot."""
    chart = Chart("reward", unit="nats")
    async with alone(chart, (22, 6)) as pilot:
        chart.show([(step, step / 10) for step in range(9)])
        assert picture(chart) == ["0.8             ⢀⠤⠔⠉", "           ⢀⣀⠤⠔⠉⠁", "       ⢀⣀⠔⠒⠁", "  0 ⣀⠔⠒⠁"]
        assert "─ 0.8 nats ─" in on_screen(pilot)
        chart.show([(0, 1.0)], last="1 of 2")
        assert "─ 1 of 2 ─" in on_screen(pilot)


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
    lines = drawn(stretches, columns, rows)
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
        await pilot.press("left", "enter", *["right"] * 30, "enter", "left", "enter")
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
        bar.show(COUNTS, "turns/s 618")
        assert picture(bar) == [
            "█" * 46 + "▓" * 34 + "▒" * 15 + "░" * 4 + "·",
            "P policy 1,889   T tool 1,366   U user 618   S scoring 180   Q queued 35   D done 71   turns/s 618",
        ]
        await pilot.resize_terminal(64, 5)
        await pilot.pause()
        assert picture(bar)[1] == "P 1,889  T 1,366  U 618  S 180  Q 35  D 71  turns/s 618"
        await pilot.resize_terminal(20, 5)
        await pilot.pause()
        assert picture(bar)[1] == "P1,889 T1,366 U618 …"
        bar.show({"done": 9})
        assert picture(bar) == ["", "D done 9"]
        bar.show({})
        assert picture(bar) == ["", ""]


@given(st.dictionaries(st.sampled_from([*PHASES, "else"]), st.integers(0, 10_000)), st.integers(0, 120))
def test_shares_fill_the_bar(counts: dict[str, int], width: int) -> None:
    """Exactly, in the order of the legend, and nobody who waits is left out while there is room."""
    cells = shares(counts, width)
    live = {phase: counts[phase] for phase in PHASES if phase != "done" and counts.get(phase)}
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
        (lambda: Chart("c"), lambda widget, text: widget.show([(0, 1), (1, 2)], last=text)),
        (lambda: Bars("b"), lambda widget, text: widget.show([(text, 0.5, text), (text, 0.1, "1 %")])),
        (lambda: Histogram("h"), lambda widget, _: widget.show(range(20))),
        (PhaseBar, lambda widget, text: widget.show(COUNTS, text)),
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
            if size[0] >= 80 and "[" in text and "\x1b" not in text:
                assert text in on_screen(pilot)


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
