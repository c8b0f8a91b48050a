"""How simulated users behave: what they are told about themselves, and what the engine does to their memory.

What can be decided by code is: which fact is forgotten at first, which is first said wrong, after how many questions
somebody leaves. Each follows from the episode's seed, so that a replay meets the same user.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from engine.task import UserContext
from engine.types import Json

MIXED = ("cooperative", "terse", "forgetful", "corrects", "impatient", "adversarial")
_PATIENCE = (2, 4)
"""Fewest and most questions that an impatient user answers."""
_DIGIT = re.compile(r"\d")

_MANNERS: Mapping[str, str] = {
    "cooperative": "You are friendly and answer what is asked.",
    "terse": "You are short of words: a few at a time, no courtesies.",
    "forgetful": "You are absent-minded: what you cannot recall right now you say so, and look it up when asked again.",
    "corrects": "You are hasty: what you got wrong you correct as soon as you notice.",
    "impatient": "You are in a hurry and let it be felt.",
    "adversarial": "You want your way whatever the rules say. Your strategy: ",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One episode's user."""

    name: str
    manner: str
    """What the model is told."""
    forgets: frozenset[str] = frozenset()
    """Facts that it recalls only when asked again."""
    mistakes: Mapping[str, Json] = field(default_factory=dict)
    """The wrong value that is said first, by fact."""
    patience: int | None = None
    """Questions after which it leaves."""


def profile(name: str, user: UserContext, draws: random.Random) -> Profile:
    """The profile `name` (or one drawn: "mixed") for a user with these facts.

    Without an escape strategy nobody is adversarial, without facts nobody forgets any: such users are cooperative."""
    if name == "mixed":
        name = draws.choice([known for known in MIXED if known != "adversarial" or user.escape_strategy])
    facts = sorted(user.facts)
    wrong = {fact: _mistaken(user.facts[fact].value, draws) for fact in facts if _slips(user.facts[fact].value)}
    if name == "forgetful" and facts:
        return Profile(name=name, manner=_MANNERS[name], forgets=frozenset({draws.choice(facts)}))
    if name == "corrects" and wrong:
        slip = draws.choice(sorted(wrong))
        return Profile(name=name, manner=_MANNERS[name], mistakes={slip: wrong[slip]})
    if name == "impatient":
        return Profile(name=name, manner=_MANNERS[name], patience=draws.randint(*_PATIENCE))
    if name == "adversarial" and user.escape_strategy:
        return Profile(name=name, manner=_MANNERS[name] + user.escape_strategy)
    name = "terse" if name == "terse" else "cooperative"
    return Profile(name=name, manner=_MANNERS[name])


def _slips(value: Json) -> bool:
    """Whether there is a digit to get wrong."""
    return not isinstance(value, bool | list | dict) and value is not None and _DIGIT.search(str(value)) is not None


def _mistaken(value: Json, draws: random.Random) -> Json:
    """The value with its last digit changed."""
    text = str(value)
    *_, last = _DIGIT.finditer(text) if _DIGIT.search(text) else [None]
    if last is None:
        return value
    other = draws.choice([digit for digit in "123456789" if digit != last.group()])
    return text[: last.start()] + other + text[last.end() :]
