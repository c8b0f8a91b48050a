"""The test `leak`: no private value is visible to somebody who does not ask.

A choice among several is no leak: where a text names the other choices of an enumeration too, or an answer of the world
the plausible wrong value beside the right one, nothing is singled out. The instruction is the user's own: what it says
of a private value, it says.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from engine.synthesis.admission.draws import folded
from engine.synthesis.admission.finding import AdmissionCase, AdmissionFlaw
from engine.synthesis.admission.spellings import normalised, says
from engine.synthesis.admission.visible import choices_of, texts_shown
from engine.synthesis.planted import spelled_call
from engine.types import Json


async def leak_flaws(case: AdmissionCase) -> AsyncIterator[AdmissionFlaw]:
    """Private values in what the agent is shown, and in what it can read."""
    assert case.task.user is not None
    for name, fact in case.task.user.facts.items():
        choices = [other for several in choices_of(case.task) for other in _others(fact.value, several)]
        for place, text in texts_shown(case.task).items():
            if says(text, fact.value) and not (place != "instruction" and _beside(text, choices)):
                evidence = f"{place} says {name}, which is {fact.value!r}"
                yield AdmissionFlaw(code="leak_shown", evidence=evidence)
        guesses = case.script.guesses.get(name, ())
        wrong = [other for right, other in guesses if folded(right) == folded(fact.value)]
        for answer in case.visible.answers:
            text = normalised(answer.content)
            if says(text, fact.value) and not _beside(text, [*choices, *wrong]):
                call = spelled_call({"name": answer.call.name, "arguments": answer.call.arguments})
                evidence = f"{answer.call.name}, which needs nothing private, says {name}, which is {fact.value!r}"
                yield AdmissionFlaw(code="leak_read", evidence=evidence, script=(call,))


def _others(value: Json, choices: Sequence[Json]) -> list[Json]:
    """The other choices of an enumeration that has this value."""
    others = [other for other in choices if folded(other) != folded(value)]
    return others if len(others) < len(choices) else []


def _beside(text: str, others: Sequence[Json]) -> bool:
    return any(says(text, other) for other in others)
