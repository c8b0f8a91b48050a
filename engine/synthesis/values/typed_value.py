"""What a type of values can do: accept a value, draw another one, and say how a value is written in prose."""

from __future__ import annotations

import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from random import Random

from engine.schema.canonical import compact, odd
from engine.types import Json

TRIES = 200
"""Candidates among which a value is drawn; a type with no more values than that is searched through."""
_LONGEST = 120
_BASE = str.maketrans({"ß": "ss", "ø": "o", "Ø": "O", "ł": "l", "Ł": "L", "æ": "ae", "Æ": "Ae", "đ": "d", "Đ": "D"})
"""Letters that do not decompose into a base letter and an accent."""


class NoOtherValueError(ValueError):
    """A type has no value besides those to avoid."""


@dataclass(frozen=True, slots=True)
class ValueType(ABC):
    """A type of values, as a draft declares it for a fact or a row of the state."""

    text: str
    """As the draft writes it: `integer[1,20]`."""

    @abstractmethod
    def accepts(self, value: Json) -> bool:
        """Whether a value is of this type."""

    @abstractmethod
    def spoken(self, value: Json) -> tuple[str, ...]:
        """Every form in which a value of this type may be written in English prose, each once, as JSON has it first.

        A form is looked for in any case and as whole words: `May 1` is not in `May 14`, nor `12` in `112` or `12.50`.
        A value of another type has the text that JSON has of it."""

    @abstractmethod
    def candidates(self, random: Random) -> Iterator[Json]:
        """Values of this type in an order that `random` decides alone: at most TRIES, all if there are no more."""

    def draw(self, random: Random, avoid: Iterable[Json] = ()) -> Json:
        """A value that shares no spoken form with a value to avoid: neither 3:00 beside 15:00 nor a date's next year.

        Equal states of `random` and equal values to avoid, in whatever order, give equal values. Raises
        NoOtherValueError."""
        taken = {form.casefold() for value in avoid for form in self.spoken(value)}
        for candidate in self.candidates(random):
            if taken.isdisjoint(form.casefold() for form in self.spoken(candidate)):
                return candidate
        raise NoOtherValueError(f"{self.text} has no value besides those that are taken")


@dataclass(frozen=True, slots=True)
class Numbered(ValueType):
    """A type whose values are numbered, so that one can be drawn by its number."""

    accepted: range
    """Numbers of the values that are of this type."""
    drawn: range
    """Numbers of those that are drawn: round ones, where there are enough."""

    @abstractmethod
    def number(self, value: Json) -> int | None:
        """The number of a value; None for one that has none."""

    @abstractmethod
    def value(self, number: int) -> Json:
        """The value of a number."""

    def accepts(self, value: Json) -> bool:
        """Whether the value has a number that this type accepts."""
        number = self.number(value)
        return number is not None and number in self.accepted

    def candidates(self, random: Random) -> Iterator[Json]:
        """Values by random numbers; of few values each once."""
        # Not len(), which ends at 2**63.
        count = -((self.drawn.start - self.drawn.stop) // self.drawn.step)
        few = count <= TRIES
        chosen = random.sample(range(count), count) if few else (random.randrange(count) for _ in range(TRIES))
        return (self.value(self.drawn[number]) for number in chosen)


def rounded(accepted: range, step: int, least: int) -> range:
    """The multiples of `step` among the numbers, if there are at least so many; else all numbers."""
    multiples = range(-(-accepted.start // step) * step, accepted.stop, step)
    return multiples if len(multiples) >= least else accepted


def bounds(name: str, body: str, number: Callable[[str], int | None], example: str) -> range:
    """The numbers from the first to the second of two bounds: `1,20`.

    Raises ValueError naming the type and an example."""
    ends = [number(part.strip()) for part in body.split(",")]
    if len(ends) != 2 or ends[0] is None or ends[1] is None:
        raise ValueError(f"{name}[{body}]: give the least and the greatest value, as in {example}")
    if ends[0] > ends[1]:
        raise ValueError(f"{name}[{body}]: the first bound is beyond the second; swap them")
    return range(ends[0], ends[1] + 1)


def is_line(value: Json) -> bool:
    """Whether a value is a text of one line that equals an argument: trimmed, in NFC, printable, at most 120 long."""
    return isinstance(value, str) and 0 < len(value) <= _LONGEST and value.isprintable() and not odd(value)


def text_forms(value: Json) -> tuple[str, ...]:
    """A text, and the same without accents; of anything else its JSON."""
    if not isinstance(value, str):
        return (compact(value),)
    apart = unicodedata.normalize("NFD", value.translate(_BASE))
    plain = "".join(character for character in apart if not unicodedata.combining(character))
    return distinct((value, unicodedata.normalize("NFC", plain)))


def distinct(forms: Iterable[str]) -> tuple[str, ...]:
    """Forms without repetitions, in their order."""
    return tuple(dict.fromkeys(forms))
