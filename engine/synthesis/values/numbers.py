"""Integers between bounds, and amounts of money, which are JSON numbers with at most two decimals."""

from __future__ import annotations

import re
from dataclasses import dataclass

from engine.synthesis.values.typed_value import Numbered, bounds, distinct, rounded, text_forms
from engine.types import Json

_INT64 = 2**63
_UNITS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_WHOLE = re.compile(r"-?[0-9]{1,19}")
_AMOUNT = re.compile(r"([0-9]{1,12})(?:\.([0-9]{1,2}))?")
_MOST_CENTS = 10**14
_HALF_UNIT = 50
_SYMBOLS = "$€£"


@dataclass(frozen=True, slots=True)
class Integer(Numbered):
    """`integer[lo,hi]`."""

    def number(self, value: Json) -> int | None:
        """The integer itself."""
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def value(self, number: int) -> Json:
        """The number itself."""
        return number

    def spoken(self, value: Json) -> tuple[str, ...]:
        """`1250`, `1,250`; `12`, `twelve`, `a dozen`."""
        number = self.number(value)
        return text_forms(value) if number is None else integer_forms(number)


@dataclass(frozen=True, slots=True)
class Money(Numbered):
    """`money` or `money[lo,hi]`: an amount without its currency, numbered in cents."""

    def number(self, value: Json) -> int | None:
        """The amount in cents."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _MOST_CENTS / 100:
            return None
        cents = round(value * 100)
        return cents if cents / 100 == value else None

    def value(self, number: int) -> Json:
        """The amount of so many cents; an integer where it is whole, as canonical JSON has it."""
        return number // 100 if number % 100 == 0 else number / 100

    def spoken(self, value: Json) -> tuple[str, ...]:
        """`12.50`, `12,50`, `$12.50`, `twelve fifty`; `12`, `12.00`, `twelve`."""
        cents = self.number(value)
        if cents is None:
            return text_forms(value)
        units, rest = divmod(cents, 100)
        plain = distinct((f"{units}", *(_grouped(units, mark) for mark in ", ")))
        marks = dict.fromkeys(".,", f"{rest:02}")
        figures = [f"{unit}{mark}{part}" for unit in plain for mark, part in marks.items() if mark not in unit]
        figures += [f"{_grouped(units, '.')},{rest:02}"]
        if rest == 0:
            figures = [*plain, *figures]
        elif rest % 10 == 0:
            figures = [f"{units}.{rest // 10}", *figures, f"{units},{rest // 10}"]
        return distinct(
            (*figures, *(symbol + figure for symbol in _SYMBOLS for figure in figures), *_said(units, rest))
        )


def integer(body: str | None) -> Integer:
    """The type between these bounds.

    Raises ValueError."""
    accepted = bounds("integer", body or "", _whole, "integer[1,20]")
    return Integer(f"integer[{body}]", accepted, accepted)


def money(body: str | None) -> Money:
    """The type between these bounds; without them any amount, of which 5 to 500 are drawn, in halves.

    Raises ValueError."""
    if body is None:
        return Money("money", range(_MOST_CENTS), range(500, 50_001, _HALF_UNIT))
    accepted = bounds("money", body, _cents, "money[5,49.50]")
    return Money(f"money[{body}]", accepted, rounded(accepted, _HALF_UNIT, 20))


def integer_forms(number: int) -> tuple[str, ...]:
    """An integer in figures, plain and in groups of three, and below a hundred in words."""
    figures = (str(number), *(_grouped(number, mark) for mark in ",. "))
    return distinct((*figures, *_words(number), *(("a dozen",) if number == 12 else ())))


def number_word(number: int) -> str:
    """An integer from 0 to 99 in words: `twenty-five`."""
    if number < len(_UNITS):
        return _UNITS[number]
    tens, units = divmod(number, 10)
    return _TENS[tens - 2] + (f"-{_UNITS[units]}" if units else "")


def _grouped(number: int, mark: str) -> str:
    return f"{number:,}".replace(",", mark)


def _words(number: int) -> tuple[str, ...]:
    if not -100 < number < 100:
        return ()
    said = number_word(abs(number))
    forms = distinct((said, said.replace("-", " ")))
    return forms if number >= 0 else tuple(f"minus {form}" for form in forms)


def _said(units: int, rest: int) -> tuple[str, ...]:
    """An amount as it is said: `twelve fifty`, `twelve`."""
    if rest == 0:
        return _words(units)
    return tuple(f"{unit} {part}" for unit in _words(units) for part in _words(rest))


def _whole(text: str) -> int | None:
    number = int(text) if _WHOLE.fullmatch(text) else None
    return number if number is not None and -_INT64 <= number < _INT64 else None


def _cents(text: str) -> int | None:
    found = _AMOUNT.fullmatch(text)
    return int(found[1]) * 100 + int((found[2] or "").ljust(2, "0")) if found else None
