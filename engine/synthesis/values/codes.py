r"""Codes by a pattern: `code[B-\d{2}]`, `code[[A-HJ-NP-Z]{3}\d{4}]`.

A pattern is a row of characters, `\d`, classes such as `[A-Z0-9]`, each perhaps `{n}` times: so every code has a
number, drawing one needs no search, and it is known when there is no other. Libraries that expand regular expressions
take far more than a code needs, follow Python's dialect instead of RE2's, and cannot say that a pattern is exhausted.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from engine.synthesis.values.typed_value import Numbered, distinct, text_forms
from engine.types import Json

_LONGEST = 64
_PIECE = re.compile(r"(?P<one>\\.|\[(?:\\.|[^\]\\])*\]|[^\\\[\]{}()*+?.^$|])(?:\{(?P<times>[0-9]{1,2})\})?", re.DOTALL)
_MEMBER = re.compile(r"(\\.|[^\\])(?:-(\\.|[^\\]))?", re.DOTALL)
_PRINTABLE = frozenset(string.ascii_letters + string.digits + string.punctuation + " ")
_BESIDE = re.compile(r"[\s._/-]+")


@dataclass(frozen=True, slots=True)
class Code(Numbered):
    """A text whose characters each come from a set of their own; it is numbered by their places in the sets."""

    places: tuple[str, ...]
    """The characters that may stand at each place, sorted."""

    def number(self, value: Json) -> int | None:
        """The number of a code, its first character weighing most."""
        if not isinstance(value, str) or len(value) != len(self.places):
            return None
        number = 0
        for character, place in zip(value, self.places, strict=True):
            if character not in place:
                return None
            number = number * len(place) + place.index(character)
        return number

    def value(self, number: int) -> Json:
        """The code of a number."""
        characters = []
        for place in reversed(self.places):
            number, index = divmod(number, len(place))
            characters.append(place[index])
        return "".join(reversed(characters))

    def spoken(self, value: Json) -> tuple[str, ...]:
        """`B-47`, `B 47`, `B47`."""
        forms = text_forms(value)
        return distinct((*forms, *(_BESIDE.sub(mark, form) for form in forms for mark in (" ", ""))))


def code(body: str | None) -> Code:
    """The type of a pattern.

    Raises ValueError naming what of it is not supported, and where."""
    if not body:
        raise ValueError(r"code: give a pattern, as in code[B-\d{2}]")
    places: list[str] = []
    at = 0
    while at < len(body):
        found = _PIECE.match(body, at)
        if found is None:
            raise _refused(body, at)
        places += ["".join(sorted(set(_characters(body, found))))] * int(found["times"] or 1)
        at = found.end()
    if not 0 < len(places) <= _LONGEST:
        raise ValueError(f"code[{body}]: a code has from 1 to {_LONGEST} characters, not {len(places)}")
    if " " in places[0] + places[-1]:
        raise ValueError(f"code[{body}]: a code begins and ends with no space, for arguments are trimmed")
    every = range(prod(map(len, places)))
    return Code(f"code[{body}]", every, every, tuple(places))


def _characters(body: str, found: re.Match[str]) -> Iterator[str]:
    """The characters of a literal, an escape or a class."""
    one, at = found["one"], found.start()
    if not one.startswith("["):
        yield from _class_member(body, at, one)
        return
    if one[1:2] in ("^", "]", "-"):
        raise _refused(body, at + 1)
    for member in _MEMBER.finditer(one, 1, len(one) - 1):
        first, last = (
            tuple(_class_member(body, at + member.start(), part)) if part else () for part in member.groups()
        )
        if not last:
            yield from first
        elif len(first) == len(last) == 1 and first <= last:
            yield from map(chr, range(ord(first[0]), ord(last[0]) + 1))
        else:
            raise _refused(body, at + member.start())


def _class_member(body: str, at: int, part: str) -> str:
    """A character, or all digits."""
    if part == r"\d":
        return string.digits
    character = part[-1]
    if character not in _PRINTABLE or (len(part) == 2 and character.isalnum()):
        raise _refused(body, at)
    return character


def _refused(body: str, at: int) -> ValueError:
    return ValueError(
        rf"code[{body}]: {body[at]!r} at character {at + 1} is not supported: a pattern is a row of ASCII characters, "
        r"\d and classes such as [A-Z0-9], each followed by {n} where it is repeated; \ goes before a character that "
        r"means itself"
    )
