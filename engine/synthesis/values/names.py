"""Names of persons, cities, streets and organisations, drawn by Mimesis in several languages of Latin script.

Mimesis, not Faker: it is typed, brings nothing else along, and is cheap to seed anew for each value. It is pinned in
pyproject.toml, because its lists are part of what a seed determines. The companies that it lists are real ones, so
organisations are made of surnames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from random import Random

from mimesis import Address, Finance, Person
from mimesis.locales import Locale

from engine.schema.canonical import canonical
from engine.synthesis.values.typed_value import TRIES, ValueType, is_line, text_forms
from engine.types import Json

_LOCALES = (
    *(Locale.EN, Locale.EN_GB, Locale.EN_AU, Locale.DE, Locale.FR, Locale.ES, Locale.ES_MX, Locale.IT, Locale.NL),
    *(Locale.PT, Locale.PL, Locale.SV, Locale.NO, Locale.DA, Locale.FI, Locale.TR, Locale.HR),
)
_MOST_SEED = 2**63


@dataclass(frozen=True, slots=True)
class Name(ValueType):
    """`person`, `city`, `street` (with its number) or `organisation`: a line with a letter in it."""

    def accepts(self, value: Json) -> bool:
        """Whether it is a line of text with a letter."""
        return is_line(value) and any(map(str.isalpha, value))

    def spoken(self, value: Json) -> tuple[str, ...]:
        """The name, and the name without accents; a part of it is another name."""
        return text_forms(value)

    def candidates(self, random: Random) -> Iterator[Json]:
        """Names of languages in turn, each from a seed of its own."""
        for _ in range(TRIES):
            yield canonical(NAMES[self.text](random.choice(_LOCALES), random.randrange(_MOST_SEED)))


def _organisation(locale: Locale, seed: int) -> str:
    people = Person(locale, seed=seed)
    first, second = people.last_name(), people.last_name()
    kind = Finance(locale, seed=seed).company_type(abbr=True)
    return f"{first} & {second} {kind}" if seed % 2 else f"{first} {kind}"


NAMES: Mapping[str, Callable[[Locale, int], str]] = {
    "person": lambda locale, seed: Person(locale, seed=seed).full_name(),
    "city": lambda locale, seed: Address(locale, seed=seed).city(),
    "street": lambda locale, seed: Address(locale, seed=seed).address(),
    "organisation": _organisation,
}
"""How a name of each type is drawn in a language, from a seed."""
