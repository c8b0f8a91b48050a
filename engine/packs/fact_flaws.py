"""Flaws of what only the user knows: values that the agent reads unasked, facts that no question asks for alone.

Only what is certain is said: small numbers and everyday words stand in texts by chance, and prose words a value in many
ways.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from itertools import chain

from engine.packs.problems import Found
from engine.reward.check_kinds import leaf_checks
from engine.reward.rubric import rubric_items
from engine.schema.validate import every_schema
from engine.task import Task, UserContext
from engine.types import Json
from engine.world.offline_user import asked

_WORD = re.compile(r"\w+")
_CODE = re.compile(r"(?=(?:\D*\d){2})[A-Z][A-Z0-9._/-]*")
"""A value with one spelling, such as HM-2207: capital letters, then digits too."""
_LETTERS = 3
"""Letters and digits that a value needs to stand in a text for sure."""


def fact_flaws(task: Task) -> Iterator[Found]:
    """Every flaw of the facts of a task without problems."""
    if task.user is None:
        return
    yield from _leaks(task, task.user)
    yield from _uninformed(task.user)
    yield from _joined(task.user)


def _leaks(task: Task, user: UserContext) -> Iterator[Found]:
    """Values that have to be asked for and stand in what the agent reads at once."""
    for name in _demanded(task):
        value = user.facts[name].value
        parts = value if isinstance(value, list) else [value]
        for field, text in (("instruction", task.instruction), ("rules", task.rules)):
            # In rules a word is most likely there for all tasks of a kind.
            special = field == "instruction" or all(map(_is_special, parts))
            if parts and special and all(_says(text, part) and not _is_one_of(task, part, text) for part in parts):
                yield Found(
                    field,
                    f"says {value!r}, the user's fact {name!r} that the agent has to ask for",
                    "leave it to the user, or ask for nothing",
                )


def _demanded(task: Task) -> list[str]:
    """The facts that a rubric wants revealed."""
    leaves = (
        leaf
        for item, part in rubric_items(task.rubric)
        if part != "forbidden" and item.check is not None
        for leaf in leaf_checks(item.check)
    )
    return list(dict.fromkeys(leaf.body for leaf in leaves if leaf.kind == "revealed" and not leaf.denied))


def _says(text: str, value: Json) -> bool:
    """Whether a text has a value as words of its own, whatever stands between and around them."""
    words = _words(value)
    return sum(map(len, words)) >= _LETTERS and f" {' '.join(words)} " in f" {' '.join(_words(text))} "


def _words(value: Json) -> list[str]:
    """A text, or a number as one, in small letters; nothing of other values."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return []
    return _WORD.findall(unicodedata.normalize("NFC", str(value)).casefold())


def _is_special(value: Json) -> bool:
    text = str(value)
    return text != text.lower() or any(map(str.isdigit, text))


def _is_one_of(task: Task, value: Json, text: str) -> bool:
    """Whether a text has another choice in the value's place too, and so does not single it out."""
    choices = [*chain.from_iterable(_choices(tool.parameters) for tool in task.tools), *_names(task.world.state)]
    others = {other for among in choices if value in among for other in among if other != value}
    return any(_says(text, other) for other in others if isinstance(other, str))


def _choices(parameters: Mapping[str, Json]) -> Iterator[list[Json]]:
    """The texts of every enumeration inside of a schema."""
    for _, schema in every_schema(parameters):
        if isinstance(choices := schema.get("enum"), list):
            yield [choice for choice in choices if isinstance(choice, str)]


def _names(state: Json) -> Iterator[list[Json]]:
    """The names beside each other in every object."""
    if isinstance(state, Mapping):
        yield list(state)
    for inner in state.values() if isinstance(state, Mapping) else state if isinstance(state, list) else ():
        yield from _names(inner)


def _uninformed(user: UserContext) -> Iterator[Found]:
    """Codes that the user is to say and that the context does not have; words and dates it may have in other forms."""
    known = "".join(_words(user.context)).replace("_", "")
    for name, fact in user.facts.items():
        for part in fact.value if isinstance(fact.value, list) else [fact.value]:
            if isinstance(part, str) and _CODE.fullmatch(part) and "".join(_words(part)).replace("_", "") not in known:
                yield Found(
                    f"user.facts.{name}.value",
                    f"the user is to say {part!r}, which stands nowhere in user.context",
                    "say it there: a model that plays a tool is told the context alone",
                )


def _joined(user: UserContext) -> Iterator[Found]:
    """Facts each of whose keywords asks for another one too, or for two before it."""
    for name, fact in user.facts.items():
        answers = [asked(user.facts, keyword) for keyword in fact.keywords]
        if all(list(answer) != [name] for answer in answers):
            others = ", ".join(dict.fromkeys(repr(other) for answer in answers for other in answer if other != name))
            yield Found(
                f"user.facts.{name}.keywords",
                f"whoever asks for {name!r} asks for {others} too: no keyword is its own",
                "give it one that asks for no other fact",
            )
