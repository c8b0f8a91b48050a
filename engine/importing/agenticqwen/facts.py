"""What a user can be asked: argument values of the expected calls that the user's background says literally."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from engine.importing.agenticqwen.calls import ExpectedCall, shown_answer
from engine.importing.agenticqwen.literal import argument_leaves, occurs, words
from engine.task import Fact
from engine.types import Json

_GENERIC = frozenset(
    {"code", "codes", "date", "for", "ids", "key", "name", "names", "new", "number", "numbers", "old", "text", "the"}
    | {"type", "value"}
)
"""Words of names that alone ask for nothing in particular; so do all words of two letters."""


def facts(calls: Sequence[ExpectedCall], background: str) -> dict[str, Fact]:
    """Facts by argument name; several values of one name are one fact, a list.

    Its keywords are the name's words together, its spelling, and each of its words that is not generic and not part of
    another fact's name."""
    values: dict[str, list[Json]] = {}
    for call in calls:
        for name, value in argument_leaves(call.arguments):
            found = values.setdefault(name, [])
            if sayable(value, background) and value not in found:
                found.append(value)
    # A name such as `to` or `id` is said in any question, so nobody can ask for it.
    values = {name: found for name, found in values.items() if found and any(len(word) > 2 for word in words(name))}
    shared = [word for name in values for word in set(words(name))]
    made = {}
    for name, found in values.items():
        own = (word for word in words(name) if len(word) > 2 and word not in _GENERIC and shared.count(word) == 1)
        keywords = tuple(dict.fromkeys([" ".join(words(name)), name, *own]))
        made[name] = Fact(value=found[0] if len(found) == 1 else _flat(found), keywords=keywords)
    return made


def _flat(values: Sequence[Json]) -> list[Any]:
    """One list of several values, of which some may be lists."""
    members = [member for value in values for member in (value if isinstance(value, list) else [value])]
    return list(dict.fromkeys(members))


def sayable(value: Json, text: str) -> bool:
    """Whether a text says a value for sure: in prose, one digit is more often something else."""
    members = value if isinstance(value, list) else [value]
    digit = any(isinstance(member, int | float) and abs(member) < 10 for member in members)
    return not digit and occurs(value, text)


def private(calls: Sequence[ExpectedCall], known: dict[str, Fact], shown: str) -> Iterator[str]:
    """Names of the facts without which these calls cannot be made: neither what the agent is shown says the value, nor
    the answer to an earlier one of the calls."""
    told = shown
    asked: dict[str, None] = {}
    for call in calls:
        for name, value in argument_leaves(call.arguments):
            fact = known.get(name)
            said = fact.value if fact and isinstance(fact.value, list) else [fact.value] if fact else []
            members = value if isinstance(value, list) else [value]
            if all(member in said for member in members) and members and not occurs(value, told):
                asked[name] = None
        told += "\n" + shown_answer(call)
    yield from asked
