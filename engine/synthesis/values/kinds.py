"""The types of values that a draft may name, by their text: `date`, `integer[1,20]`, `choice[small|large]`, `fixed`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from random import Random

from engine.synthesis.values.codes import code
from engine.synthesis.values.moments import dates, times
from engine.synthesis.values.names import NAMES, Name
from engine.synthesis.values.numbers import Money, integer, integer_forms, money
from engine.synthesis.values.typed_value import Numbered, ValueType, distinct, is_line, text_forms
from engine.types import Json

_FORM = re.compile(r"([a-z]+)(?:\[(.*)\])?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class OneOf(Numbered):
    """`choice[a|b|c]`: one of these texts."""

    choices: tuple[str, ...]

    def number(self, value: Json) -> int | None:
        """The place of a text among the choices."""
        return self.choices.index(value) if value in self.choices else None

    def value(self, number: int) -> Json:
        """The text at a place."""
        return self.choices[number]

    def spoken(self, value: Json) -> tuple[str, ...]:
        """`two_seater`, `two seater`."""
        forms = text_forms(value)
        return distinct((*forms, *(re.sub(r"[_-]+", " ", form) for form in forms)))


@dataclass(frozen=True, slots=True)
class Fixed(ValueType):
    """`fixed`: any value; it is never drawn again."""

    def accepts(self, value: Json) -> bool:  # noqa: ARG002 - of a fixed value nothing is asked
        """Always."""
        return True

    def spoken(self, value: Json) -> tuple[str, ...]:
        """A date, time or number in all its forms, a list with commas, anything else as text."""
        if isinstance(value, list):
            return distinct([", ".join(str(part) for part in value), *text_forms(value)])
        if isinstance(value, int) and not isinstance(value, bool):
            return integer_forms(value)
        of_one = next((kind for kind in _RECOGNISED if kind.accepts(value)), None)
        return text_forms(value) if of_one is None else of_one.spoken(value)

    def candidates(self, random: Random) -> Iterator[Json]:  # noqa: ARG002 - there are none
        """None."""
        return iter(())


@lru_cache(maxsize=1024)
def value_type(text: str) -> ValueType:
    """The type that a draft names.

    Raises ValueError saying what is wrong with the name, and how it is written."""
    found = _FORM.fullmatch(text)
    make = _KINDS.get(found[1]) if found else None
    if found is None or make is None:
        raise ValueError(f"{text!r} is no type of value; one of {', '.join(EXAMPLES)}")
    return make(found[2])


def _plain(name: str, made: ValueType, body: str | None) -> ValueType:
    if body is not None:
        raise ValueError(f"{name}[{body}]: {name} takes nothing in brackets; write {name}")
    return made


def _choice(body: str | None) -> OneOf:
    choices = tuple(part.strip() for part in (body or "").split("|"))
    if len(set(choices)) != len(choices) or len(choices) < 2 or not all(map(is_line, choices)):
        raise ValueError(f"choice[{body or ''}]: give at least two different texts, as in choice[small|medium|large]")
    every = range(len(choices))
    return OneOf(f"choice[{body}]", every, every, choices)


_KINDS: Mapping[str, Callable[[str | None], ValueType]] = {
    "date": dates,
    "time": times,
    **{name: partial(_plain, name, Name(name)) for name in NAMES},
    "integer": integer,
    "money": money,
    "code": code,
    "choice": _choice,
    "fixed": partial(_plain, "fixed", Fixed("fixed")),
}
_EXAMPLES = {"integer": "integer[1,20]", "code": r"code[B-\d{2}]", "choice": "choice[small|medium|large]"}
EXAMPLES = tuple(_EXAMPLES.get(name, name) for name in _KINDS)
"""One of each type, as a draft writes it."""
_RECOGNISED: tuple[Numbered, ...] = (dates(None), times(None), Money("money", money(None).accepted, range(0)))
