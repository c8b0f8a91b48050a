"""Whether a text gives a value away: exact, normalised, in number words, as a date or a time written in other ways."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from datetime import date
from functools import lru_cache

from engine.synthesis.values.moments import MONTHS, ordinal
from engine.synthesis.values.numbers import number_word
from engine.types import Json

_TOKEN = re.compile(r"(?:[^\W\d_]+-?)?\d\w*(?:[-.:/,]\d\w*)*|[^\W\d_]+")
"""A word; or a number, code, date or time with what joins its parts: `14:30`, `rf-20931`, `2,000`."""
_MOMENT = re.compile(r"(?<=\d\d\d\d-\d\d-\d\d)t(?=\d)")
"""What joins date and time."""
_DATE = re.compile(r"(\d{4})-(\d\d)-(\d\d)")
_TIME = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)")
_INTEGER = re.compile(r"-?\d{1,15}")
_CODE = re.compile(r"(?=[^\W_]*\d)(?=[^\W_]*[^\W\d_])[^\W_]+")
_JOINTS = re.compile(r"[\W_]+")

_SPELLED_BELOW = 1000


def normalised(text: str) -> str:
    """The words of a text, folded, with one blank around each: a value's spelling is looked for in it as it is."""
    folded = _MOMENT.sub(" ", unicodedata.normalize("NFKC", text).casefold())
    return f" {' '.join(_TOKEN.findall(folded))} "


def says(text: str, value: Json) -> bool:
    """Whether a normalised text says a value, in whatever spelling; a list, whether it says each element.

    Of true, false and null nothing can be told: no text says them."""
    if isinstance(value, list):
        return bool(value) and all(says(text, inner) for inner in value)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return False
    return any(spelling in text for spelling in spellings(value))


@lru_cache(maxsize=65_536)
def spellings(value: str | float) -> frozenset[str]:
    """Every spelling of a value, normalised; empty for a text without a word."""
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    return frozenset(spelling for spelling in map(normalised, {text, *_written(text)}) if spelling.strip())


def _written(text: str) -> Iterator[str]:
    text = text.strip()
    if found := _DATE.fullmatch(text):
        yield from _dates(*map(int, found.groups()))
    elif found := _TIME.fullmatch(text):
        yield from _times(int(found[1]), found[2])
    elif _INTEGER.fullmatch(text):
        number = int(text)
        yield f"{number:,}"
        # "one" is a pronoun and an article more often than a number.
        if number != 1 and 0 <= number < _SPELLED_BELOW:
            yield from _number_words(number)
    elif _CODE.fullmatch(joined := _JOINTS.sub("", text)):
        yield joined


def _dates(year: int, month: int, day: int) -> Iterator[str]:
    try:
        date(year, month, day)
    except ValueError:
        return
    name = MONTHS[month - 1]
    for named in dict.fromkeys((name, name[:3])):
        for spoken in (f"{day}", f"{day:02d}", ordinal(day)):
            yield from (f"{spoken} {named}", f"{named} {spoken}", f"{spoken} of {named}")
    for joint in "./-":
        for first, second in ((day, month), (month, day)):
            yield from (f"{first}{joint}{second}{joint}{year}", f"{first:02d}{joint}{second:02d}{joint}{year}")
    yield from (f"{year}/{month:02d}/{day:02d}", f"{year}.{month:02d}.{day:02d}", f"{year}{month:02d}{day:02d}")


def _times(hour: int, minute: str) -> Iterator[str]:
    half, of_twelve = ("am", "pm")[hour >= 12], (hour + 11) % 12 + 1
    yield from (f"{hour}:{minute}", f"{hour:02d}:{minute}", f"{hour}.{minute}", f"{hour}h{minute}")
    spoken = [f"{of_twelve}:{minute}", f"{of_twelve}.{minute}"]
    if minute == "00":
        spoken += [f"{of_twelve}", number_word(of_twelve)]
        yield from (f"{of_twelve} o'clock", f"{number_word(of_twelve)} o'clock", f"{hour} hours")
        part = "morning" if hour < 12 else "afternoon" if hour < 18 else "evening"
        yield from (f"{one} in the {part}" for one in spoken)
    for one in spoken:
        yield from (f"{one} {half}", f"{one}{half}")


def _number_words(number: int) -> Iterator[str]:
    hundreds, rest = divmod(number, 100)
    if not hundreds:
        yield number_word(rest)
    elif not rest:
        yield f"{number_word(hundreds)} hundred"
    else:
        yield from (f"{number_word(hundreds)} hundred{joint} {number_word(rest)}" for joint in ("", " and"))
