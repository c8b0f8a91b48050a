"""Dates (`2027-05-14`) and times of day (`15:00`), in the many ways in which English prose writes them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date

from engine.synthesis.values.numbers import number_word
from engine.synthesis.values.typed_value import Numbered, bounds, distinct, rounded, text_forms
from engine.types import Json

_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_TIME = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])")
# Not those of the module calendar, which are the locale's.
MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July"),
    *("August", "September", "October", "November", "December"),
)
_SHORT = {9: "Sept"}
_DRAWN_DATES = range(date(2027, 1, 1).toordinal(), date(2028, 12, 31).toordinal() + 1)
_DRAWN_MINUTES = range(8 * 60, 20 * 60 + 1, 15)
_DAY = range(24 * 60)
_TIMES_OF_DAY = ((range(12), "in the morning"), (range(12, 18), "in the afternoon"), (range(17, 24), "in the evening"))
_NIGHT = frozenset({0, 1, 2, 3, 4, 21, 22, 23})


@dataclass(frozen=True, slots=True)
class Date(Numbered):
    """`date` or `date[first,last]`: a day of the calendar, numbered as Python does."""

    def number(self, value: Json) -> int | None:
        """The proleptic ordinal of the day."""
        day = _day(value)
        return None if day is None else day.toordinal()

    def value(self, number: int) -> Json:
        """The day in ISO 8601."""
        return date.fromordinal(number).isoformat()

    def spoken(self, value: Json) -> tuple[str, ...]:
        """`2027-05-14`, `14 May 2027`, `May 14, 2027`, `14th of May`, `May 14th`, `14.05.2027`, `5/14/2027`."""
        day = _day(value)
        return text_forms(value) if day is None else distinct((day.isoformat(), *_in_words(day), *_in_figures(day)))


@dataclass(frozen=True, slots=True)
class Time(Numbered):
    """`time` or `time[first,last]`: a minute of the day."""

    def number(self, value: Json) -> int | None:
        """Minutes since midnight."""
        found = _TIME.fullmatch(value) if isinstance(value, str) else None
        return int(found[1]) * 60 + int(found[2]) if found else None

    def value(self, number: int) -> Json:
        """Hours and minutes, two digits each."""
        return f"{number // 60:02}:{number % 60:02}"

    def spoken(self, value: Json) -> tuple[str, ...]:
        """`15:00`, `3 pm`, `3:00 p.m.`, `three in the afternoon`, `3 o'clock`; `15:30`, `half past three`."""
        minutes = self.number(value)
        if minutes is None:
            return text_forms(value)
        hour, minute = divmod(minutes, 60)
        whole = _full_hour(hour) if minute == 0 else _past(hour, minute)
        return distinct((value, *_on_the_clock(hour, minute), *whole))


def dates(body: str | None) -> Date:
    """The type between these days; without them any day, of which those of 2027 and 2028 are drawn.

    Raises ValueError."""
    if body is None:
        return Date("date", range(1, date.max.toordinal() + 1), _DRAWN_DATES)
    every = dates(None)
    accepted = bounds("date", body, every.number, "date[2027-05-01,2027-06-30]")
    return Date(f"date[{body}]", accepted, accepted)


def times(body: str | None) -> Time:
    """The type between these times; without them any minute, of which quarters from 8:00 to 20:00 are drawn.

    Raises ValueError."""
    if body is None:
        return Time("time", _DAY, _DRAWN_MINUTES)
    every = times(None)
    accepted = bounds("time", body, every.number, "time[09:00,17:30]")
    return Time(f"time[{body}]", accepted, rounded(accepted, 15, 8))


def _day(value: Json) -> date | None:
    if not isinstance(value, str) or not _DATE.fullmatch(value):
        return None
    try:
        return date.fromisoformat(value)
    except ValueError:
        return None


def _in_words(day: date) -> list[str]:
    """With the year and without, by the name of the month and its abbreviation."""
    name = MONTHS[day.month - 1]
    months = distinct((name, name[:3], _SHORT.get(day.month, name)))
    numbers = (str(day.day), ordinal(day.day), f"{day.day:02}")
    forms = [form for month in months for number in numbers for form in (f"{number} {month}", f"{month} {number}")]
    forms += [f"{ordinal(day.day)} of {month}" for month in months]
    with_year = [f"{form}{mark} {day.year}" for form in forms for mark in ("", ",")]
    return [*with_year, *forms]


def _in_figures(day: date) -> list[str]:
    """Day or month first, with and without leading zeros."""
    pairs = [(f"{day.day:02}", f"{day.month:02}"), (str(day.day), str(day.month))]
    orders = [order for first, second in pairs for order in ((first, second), (second, first))]
    days_first = [f"{first}.{second}.{day.year}" for first, second in pairs]
    return [*days_first, *(f"{first}{mark}{second}{mark}{day.year}" for first, second in orders for mark in "/-")]


def ordinal(number: int) -> str:
    """A number as the day of a month: `14th`."""
    ends = {1: "st", 2: "nd", 3: "rd"}
    return f"{number}{'th' if 11 <= number <= 13 else ends.get(number % 10, 'th')}"


def _on_the_clock(hour: int, minute: int) -> list[str]:
    """Figures on the clocks of 24 and of 12 hours."""
    short = hour % 12 or 12
    half = "am" if hour < 12 else "pm"
    figures = [f"{short}{mark}{minute:02}" for mark in ":."] + ([str(short)] if minute == 0 else [])
    dotted = f"{half[0]}.m."
    halves = [f"{figure}{end}" for figure in figures for end in (f" {half}", half, f" {dotted}", dotted)]
    return [f"{hour}:{minute:02}", f"{hour:02}.{minute:02}", f"{hour:02}h{minute:02}", f"{short}:{minute:02}", *halves]


def _full_hour(hour: int) -> list[str]:
    short = hour % 12 or 12
    named = {0: ["midnight"], 12: ["noon", "midday"]}.get(hour, [])
    spans = [span for hours, span in _TIMES_OF_DAY if hour in hours] + (["at night"] if hour in _NIGHT else [])
    half = "am" if hour < 12 else "pm"
    called = (str(short), number_word(short))
    return [
        *named,
        *(f"{name} {end}" for name in called for end in ("o'clock", *spans)),
        f"{number_word(short)} {half}",
    ]


def _past(hour: int, minute: int) -> list[str]:
    """`half past three`, `quarter to four`, `ten past three`, `three thirty`."""
    past = minute <= 30
    distance = minute if past else 60 - minute
    beside = (hour if past else hour + 1) % 12 or 12
    called = {15: ["quarter"], 30: ["half"]}.get(distance, [number_word(distance), str(distance)])
    word, hours = "past" if past else "to", (number_word(beside), str(beside))
    said = number_word(minute) if minute > 9 else f"oh {number_word(minute)}"
    return [*(f"{part} {word} {name}" for part in called for name in hours), f"{number_word(hour % 12 or 12)} {said}"]
