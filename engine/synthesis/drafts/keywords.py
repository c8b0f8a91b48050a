"""Keywords of facts, out of the ways to ask for each: every question must reveal exactly its fact.

The offline user listens for whole words and phrases. Of the questions of a fact two thirds teach them, the rest are
held out and must be understood all the same: they are what agents will ask that no teacher thought of.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from engine.synthesis.drafts.draft import DraftFact
from engine.synthesis.drafts.plan import DraftError
from engine.task import Fact
from engine.world.offline_user import asked

_WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")
_LONGEST = 3
"""Words of a phrase."""
_COMMON_WORDS = """
a about all already also an and any anything are as at be been before can case could did do does each else exactly fine
for from get give good got had has have help here how i if in into is it it's its just kind know let like look looking
make may me mind more my need needed needs of ok okay on one or our out please prefer preferred quick say see shall
should so some tell than that the their them then there these they this to understand up us want wanted was we well were
what what's which who will wish with won't would you you'd you're your yours
"""
_COMMON = frozenset(_COMMON_WORDS.split())
"""Words that questions of every kind have."""


def taught(questions: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """The questions that keywords are made from, and those that are held out."""
    count = len(questions) - len(questions) // 3
    return questions[:count], questions[count:]


def keyworded(facts: Mapping[str, DraftFact], values: Mapping[str, object]) -> dict[str, Fact]:
    """The facts with the words that ask for each.

    Raises DraftError for a question that asks for nothing, for another fact, or for two."""
    words = {name: [_phrases(question) for question in taught(fact.questions)[0]] for name, fact in facts.items()}
    made = {}
    for name, fact in facts.items():
        others = {phrase for other, asking in words.items() if other != name for heard in asking for phrase in heard}
        made[name] = Fact(value=values[name], keywords=tuple(_keywords(name, words[name], others)))
        if not made[name].keywords:
            reason = f"no word of its questions is its own: {fact.questions[0]!r}"
            raise DraftError("keywords", f"fact {name}", reason, "ask for it in words that ask for no other fact")
    for name, fact in facts.items():
        for question in fact.questions:
            revealed = asked(made, question)
            if list(revealed) != [name]:
                said = " and ".join(revealed) or "nothing"
                remedy = "word it so that it names the thing that is asked for, and nothing else"
                raise DraftError("keywords", f"fact {name}", f"{question!r} asks for {said}", remedy)
    return made


def _keywords(name: str, asking: Sequence[frozenset[str]], others: set[str]) -> Iterator[str]:
    """Words that only these questions have, the name of the fact, and a phrase for a question without such a word."""
    spoken = name.replace("_", " ")
    own = {word for heard in asking for word in heard if " " not in word and word not in _COMMON} - others
    yield from sorted({spoken} - others | own)
    covered = own | {spoken}
    for heard in asking:
        if not heard & covered:
            phrases = sorted(phrase for phrase in heard - others if not _COMMON.issuperset(phrase.split()))
            if phrases:
                covered.add(chosen := min(phrases, key=lambda phrase: (len(phrase.split()), phrase)))
                yield chosen


def _phrases(question: str) -> frozenset[str]:
    """Every word and phrase of a question."""
    words = [word.casefold() for word in _WORD.findall(question)]
    return frozenset(
        " ".join(words[at : at + length]) for length in range(1, _LONGEST + 1) for at in range(len(words) - length + 1)
    )
