"""Untrusted text: what it looks like once it can do no harm, how it fits cells, and what that costs."""

from __future__ import annotations

import math
import unicodedata
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.cells import cell_len, get_character_cell_size
from rich.color import Color
from rich.style import Style

from engine.telemetry.window import PHASES as WAITS
from tests.parts.work import calls, peak_bytes
from tui.text import clock, count, cut, duration, plain, since, took, visible, wrapped
from tui.theme import PHASE_LOOKS, logprob_style, reward_style

NASTY = st.text(
    st.one_of(
        st.characters(),
        st.characters(categories=("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs", "Mn", "Me", "Mc", "So")),
        st.sampled_from("ab \n\t\r\x1b\x9b界👍🏽\u200d\ufe0f\u202e\u2066\u0301"),
    ),
    max_size=120,
)
HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


@given(NASTY)
def test_nothing_acts_or_hides(text: str) -> None:
    """No control, format, surrogate or separator is left, no flood of marks, and each character has its place."""
    shown = plain(text)
    assert not HIDDEN & {unicodedata.category(c) for c in shown}
    assert len(shown) == len(text)
    marks = "".join("m" if get_character_cell_size(c) == 0 else "." for c in shown)
    assert "mmm" not in marks
    assert not marks.startswith("m")
    shown.encode()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("[red]x[/]", "[red]x[/]"),
        ("\x1b[2J", "␛[2J"),
        ("\x9b2J\x07", "·2J·"),
        ("a\tb\nc\r\nd", "a b⏎c ⏎d"),
        ("\u202egpj.exe\u2066", "·gpj.exe·"),
        ("\ud800", "·"),
        ("a\u200bb\u2028c\ue000", "a·b·c·"),
        ("e\u0301\u0302\u0303\u0304", "e\u0301\u0302··"),
        ("\u0301", "·"),
        ("⚠\ufe0f 👍", "⚠  👍"),
        ("a\u3164\U000e0101", "a··"),
        ("naïve 界", "naïve 界"),
        (None, "None"),
        (-1.5, "-1.5"),
    ],
)
def test_what_stands_in(text: object, shown: str) -> None:
    """Known characters have a picture of their own, all others a dot."""
    assert plain(text) == shown


def test_what_is_no_text_is_shown_too() -> None:
    """A number that Python does not print and a list in itself are named, not raised."""
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    assert plain(10**5_000) == "<int>"
    assert plain(deep) == "<list>"


@pytest.mark.parametrize("unit", ["a", "\x1b[2J", "e" + "\u0301" * 50, "界", "\n"])
def test_ten_megabytes_cost_what_is_shown(unit: str) -> None:
    """Only the limit is read, whatever the text is made of."""
    text = unit * (10_000_000 // len(unit))
    few = text[:10_000]

    def read(text: str) -> None:
        plain(text), cut(text, 80), wrapped(text, 80, 5)

    read(few)  # what is looked up once
    assert calls(lambda: read(text)) == calls(lambda: read(few))
    assert peak_bytes(lambda: read(text)) < 1_000_000, "nobody copies it"
    shown, line, (_, spans, rest) = plain(text), cut(text, 80), wrapped(text, 80, 5)
    assert shown.endswith(f"… (+{len(text) - 4_000:,})")
    assert cell_len(line) == 80
    assert len(spans) == 5
    assert rest > 0.9 * len(text)


@given(NASTY, st.integers(0, 40), st.booleans())
@example("界", 1, True)
@example("a界", 2, False)
def test_a_cut_has_the_cells_that_were_asked_for(text: str, width: int, right: bool) -> None:
    """Exactly, with wide characters at the edge too."""
    line = cut(text, width, right=right)
    assert cell_len(line) == width
    assert "\n" not in line


def test_a_cut_says_that_it_is_one() -> None:
    """With an ellipsis; what fits is padded on the side that was asked for."""
    assert cut("reward", 4) == "rew…"
    assert cut("界界界", 4) == "界… "
    assert cut("界界", 4) == "界界"
    assert cut("12", 4, right=True) == "  12"
    assert cut(12, 4) == "12  "


def lines_of(text: str, width: int) -> list[str]:
    """All of it, wrapped."""
    shown, spans, rest = wrapped(text, width, 400)
    assert not rest
    return [shown[start:end] for start, end in spans]


@given(NASTY, st.integers(1, 30))
def test_lines_fit_and_nothing_is_lost(text: str, width: int) -> None:
    """Each is as wide as allowed at most; only spaces go, where a line breaks."""
    lines = lines_of(text, width)
    assert all(cell_len(line) <= width for line in lines)
    if width > 1:
        assert "".join(lines).replace(" ", "") == visible(text).replace("\n", "").replace(" ", "")


@given(st.text("ab é", max_size=60), st.integers(2, 12))
def test_both_ways_of_wrapping_agree(text: str, width: int) -> None:
    """Text of narrow characters wraps the same beside a wide one, which takes the slower way."""
    assert lines_of(text + "\n界", width)[:-1] == lines_of(text + "\n", width)


def test_lines_break_at_spaces_and_keep_what_is_indented() -> None:
    """Words stay whole where they fit; an indent is no place to break."""
    assert lines_of("the smaller one, in red", 9) == ["the", "smaller", "one, in", "red"]
    assert lines_of("    abcdefgh", 6) == ["    ab", "cdefgh"]
    assert lines_of("a\n\nb\n", 9) == ["a", "", "b"]
    assert lines_of("界界界 x", 5) == ["界界", "界 x"]
    assert lines_of("界", 1) == ["·"]
    assert lines_of("", 9) == []
    assert lines_of("abc ", 3) == ["abc"]


def test_more_lines_than_allowed_are_counted() -> None:
    """In characters, with the ends of lines."""
    assert wrapped("a\nb\nc\nd", 20, 3) == ("a\nb\nc\nd", [(0, 1), (2, 3), (4, 5)], 2)
    assert wrapped("a\nb\nc", 20, 3)[2] == wrapped("a\nb\nc\n", 20, 3)[2] == 0


@pytest.mark.parametrize(
    ("seconds", "short", "long"),
    [
        (0.94, "0.9s", "00:00:00"),
        (41.3, "41.3s", "00:00:41"),
        (59.96, "1:00", "00:00:59"),
        (737, "12:17", "00:12:17"),
        (3_725, "1:02:05", "01:02:05"),
        (-1.0, "0.0s", "00:00:00"),
        (math.nan, "—", "—"),
        (math.inf, "—", "—"),
    ],
)
def test_time(seconds: float, short: str, long: str) -> None:
    """Short for a wait, in full for the clock of a run."""
    assert duration(seconds) == short
    assert clock(seconds) == long


def test_time_of_what_is_quick() -> None:
    """In milliseconds, below a second; what took some never shows as nothing."""
    shown = {
        0: "0ms",
        0.0004: "<1ms",
        0.012: "12ms",
        0.9994: "999ms",
        0.9996: "1.0s",
        61: "1:01",
        math.nan: "—",
        -1: "0.0s",
    }
    assert [took(seconds) for seconds in shown] == list(shown.values())


@pytest.mark.parametrize(
    ("n", "shown"),
    [
        (0, "0"),
        (3_912, "3,912"),
        (11_240, "11.2k"),
        (999_949, "999.9k"),
        (999_950, "1.0M"),
        (4_123_456, "4.1M"),
        (-25_000, "-25.0k"),
        (7e12, "7,000.0G"),
        (math.nan, "—"),
    ],
)
def test_counts(n: float, shown: str) -> None:
    """In few cells, in every range."""
    assert count(n) == shown


def luminance(color: Color) -> float:
    """Relative luminance, as WCAG defines it."""
    parts = (part / 255 for part in color.get_truecolor())
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("background", ["#121212", "#1e1e1e", "#e0e0e0", "#d8d8d8", "#ffffff"])
def test_colours_read_on_dark_and_light(background: str) -> None:
    """Contrast of 3:1 at least, on Textual's own backgrounds."""
    styles = [*(look.style for look in PHASE_LOOKS.values()), reward_style(1), reward_style(-1)]
    styles += [logprob_style(logprob) for logprob in (-0.1, -1, -3, -9)]
    other = luminance(Color.parse(background))
    for style in styles:
        if (color := Style.parse(style).color) is not None:
            low, high = sorted((other, luminance(color)))
            assert (high + 0.05) / (low + 0.05) >= 3, (style, background)


def test_every_phase_has_a_letter_and_a_glyph_of_its_own() -> None:
    """Of one cell, for those who see no colour; and the phases are the engine's."""
    assert set(PHASE_LOOKS) == set(WAITS)
    for at in (0, 2):
        twins = [look[at] for look in PHASE_LOOKS.values()]
        assert len(set(twins)) == len(twins)
        assert all(cell_len(twin) == 1 for twin in twins)


def test_without_colour_rewards_and_likelihoods_differ_still() -> None:
    """By the attributes of their style alone."""

    def attributes(style: str) -> Style:
        return Style.parse(style).without_color

    rewards = [attributes(reward_style(value)) for value in (None, -1.0, 0.0, 1.0)]
    assert all(a != b for at, a in enumerate(rewards) for b in rewards[at + 1 :])
    assert reward_style(math.nan) == reward_style(None)
    steps = [attributes(logprob_style(math.log(p))) for p in (0.9, 0.3, 0.05, 0.001)]
    assert all(a != b for a, b in pairwise(steps))
    assert logprob_style(-math.inf) == logprob_style(-50.0)
    assert logprob_style(math.nan) == reward_style(None)


def test_what_lasts_ticks_together() -> None:
    """In tenths while it is short, then in whole seconds: all of a screen change when the clock's second does."""
    assert [since(seconds, 100.0) for seconds in (-1.0, 0.04, 9.9, 9.96, 59.0, 60.0, 3725.0)] == [
        *("0.0s", "0.0s", "9.9s", "10s", "59s", "1:00", "1:02:05"),
    ]
    assert since(math.nan, 0.0) == since(math.inf, 0.0) == "—"
    starts_s = (3.1, 17.77, 42.99, 61.5)
    looks = [[since(now_s - start_s, now_s) for start_s in starts_s] for now_s in (80.0, 80.5, 80.99, 81.0, 81.5)]
    assert looks[0] == looks[1] == looks[2]
    assert looks[3] == looks[4]
    assert not set(looks[0]) & set(looks[3])
