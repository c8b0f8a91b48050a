"""Untrusted text made harmless and fitted to cells, and numbers as people read them.

Models, tools and packs write what they like: escapes that clear the screen, bidi controls that reverse a line, floods
of accents, megabytes. All of it passes through here, character for character, and costs what is shown of it.
"""

from __future__ import annotations

import math
import unicodedata
from bisect import bisect_right
from collections.abc import Callable
from itertools import accumulate

from rich.cells import cell_len, get_character_cell_size

STAND_IN = "·"
_KNOWN = {"\x1b": "␛", "\t": " ", "\ufe0e": " ", "\ufe0f": " "}
# Emoji variation selectors are a cell of their own: with them terminals differ on how wide the emoji is.
_UNSEEN = frozenset(
    map(chr, (0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x3164, 0xFFA0, *range(0x180B, 0x1810), *range(0xFE00, 0xFE10)))
) | frozenset(map(chr, range(0xE0100, 0xE01F0)))
# Fillers and variation selectors: assigned, no format characters, and still nothing that one sees.
_MOST_MARKS = 2


def visible(text: str) -> str:
    """`text` with a stand-in for each character that is not seen or steers a terminal; newlines stay.

    It has as many characters as `text`, so styles of its parts stay where they are."""
    if text.isascii() and text.isprintable():
        return text
    text = text.replace("\r\n", " \n")
    kinds = set(text)
    odd = {ord(c): _stand_in(c) for c in kinds if c != "\n" and (not c.isprintable() or c in _UNSEEN)}
    if odd:
        text = text.translate(odd)
    marks = {c for c in kinds if ord(c) not in odd and c != "\n" and not get_character_cell_size(c)}
    return _few_marks(text, marks) if marks else text


def plain(text: object, limit: int = 4_000) -> str:
    """`text` on one line, with nothing in it that acts or hides; what is beyond `limit` characters is counted."""
    whole = _string(text)
    shown = visible(whole[:limit]).replace("\n", "⏎")
    return f"{shown}… (+{len(whole) - limit:,})" if len(whole) > limit else shown


def wrapped(text: str, width: int, most_lines: int) -> tuple[str, list[tuple[int, int]], int]:
    """The visible text, where each of its lines of at most `width` cells begins and ends, and the characters left over.

    Lines break at spaces where they can. Only as much of the text is read as `most_lines` could hold."""
    shown = visible(text[: most_lines * (width + 1)])
    if width < 2 and not shown.isascii():
        shown = "".join(STAND_IN if get_character_cell_size(c) > width else c for c in shown)
    reach = _reach(shown, width)
    spans: list[tuple[int, int]] = []
    start = 0
    while start < len(shown) and len(spans) < most_lines:
        end = shown.find("\n", start)
        end = len(shown) if end < 0 else end
        _wrap(shown, (start, end), reach, spans)
        start = end + 1
    whole = start >= len(shown) == len(text) and len(spans) <= most_lines
    spans = spans[:most_lines]
    return shown, spans, 0 if whole else len(text) - (spans[-1][1] if spans else 0)


def cut(text: object, width: int, *, right: bool = False) -> str:
    """`text` on one line of exactly `width` cells."""
    line, spare = fitted(_string(text), width)
    return " " * spare + line if right else line + " " * spare


def fitted(text: str, width: int) -> tuple[str, int]:
    """The visible text on one line of at most `width` cells, and the cells that it leaves."""
    if width <= 0:
        return "", 0
    if len(text) <= width and text.isascii() and text.isprintable():
        return text, width - len(text)
    line = visible(text[: width * (1 + _MOST_MARKS) + 1]).replace("\n", "⏎")
    cells = cell_len(line)
    if cells <= width:
        return line, width - cells
    line, cells = _head(line, width - 1)
    return line + "…", width - 1 - cells


def duration(seconds: float) -> str:
    """0.9s, 41.3s, 12:17, 1:02:05."""
    if not math.isfinite(seconds):
        return "—"
    if round(seconds, 1) < 60:
        return f"{max(0.0, seconds):.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def since(seconds: float, now_s: float) -> str:
    """How long it has lasted so far: 0.9s, 41s, 12:17. From 10 s on, all tick together, so that fewer lines change."""
    if not 9.95 <= seconds < math.inf:
        return duration(seconds)
    whole = math.floor(now_s) - math.floor(now_s - seconds)
    return f"{whole}s" if whole < 60 else duration(whole)


def took(seconds: float) -> str:
    """A duration, with milliseconds below a second: <1ms, 12ms."""
    if 0 < seconds < 0.0005:
        return "<1ms"
    return f"{1e3 * seconds:.0f}ms" if 0 <= seconds < 0.9995 else duration(seconds)


def clock(seconds: float) -> str:
    """00:42:17."""
    if not math.isfinite(seconds):
        return "—"
    minutes, rest = divmod(max(0, int(seconds)), 60)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest:02}"


def count(n: float) -> str:
    """3,912, 11.2k, 4.1M."""
    if not math.isfinite(n):
        return "—"
    if abs(n) < 9_999.5:
        return f"{n:,.0f}"
    for unit in "kM":
        n /= 1_000
        if abs(n) < 999.95:
            return f"{n:.1f}{unit}"
    return f"{n / 1_000:,.1f}G"


def _string(text: object) -> str:
    if isinstance(text, str):
        return text
    try:
        return str(text)
    except (ValueError, RecursionError):  # an integer of 5,000 digits, a list in itself a thousand times
        return f"<{type(text).__name__}>"


def _stand_in(c: str) -> str:
    return _KNOWN.get(c) or (" " if unicodedata.category(c) == "Zs" else STAND_IN)


def _few_marks(text: str, marks: set[str]) -> str:
    """No mark without a character to stand on, and not more than two on one."""
    out = []
    room = 0
    for c in text:
        if c not in marks:
            room = 0 if c in " \n" else _MOST_MARKS
        elif room:
            room -= 1
        else:
            out.append(STAND_IN)
            continue
        out.append(c)
    return "".join(out)


def _reach(text: str, width: int) -> Callable[[int], int]:
    """How far a line that begins somewhere can go."""
    sizes = {} if text.isascii() else {c: get_character_cell_size(c) for c in set(text)}
    if all(size == 1 or c == "\n" for c, size in sizes.items()):
        return lambda start: start + width
    cells = list(accumulate(map(sizes.__getitem__, text), initial=0))
    return lambda start: bisect_right(cells, cells[start] + width, start) - 1


def _wrap(text: str, line: tuple[int, int], reach: Callable[[int], int], spans: list[tuple[int, int]]) -> None:
    start, end = line
    while (stop := reach(start)) < end:
        space = text.rfind(" ", start, stop + 1)
        if space <= start or (space < stop and text[start:space].isspace()):
            spans.append((start, stop))
            start = stop
        else:
            spans.append((start, space))
            start = space + 1
    if start < end or start == line[0]:
        spans.append((start, end))


def _head(text: str, width: int) -> tuple[str, int]:
    """As many characters as `width` cells hold, and their cells."""
    cells = 0
    for at, c in enumerate(text):
        size = get_character_cell_size(c)
        if cells + size > width:
            return text[:at], cells
        cells += size
    return text, cells
