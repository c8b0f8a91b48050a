"""The tests of what does not pay: floor, gap, guess."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import NamedTuple

from engine.synthesis.admission.climbing import adversary_draws, drawn_call
from engine.synthesis.admission.finding import AdmissionCase, AdmissionFlaw
from engine.synthesis.admission.play import WithholdingUser, earned
from engine.synthesis.planted import DONE, acting, asking, calls_in, guessed, spelled_call, uninformed
from engine.types import Episode, EventKind, Reward, StopReason

MOST_FLOOR = 0.5
"""What an episode without the plan may earn."""
RANDOM_SCRIPTS = 32
_SILENCE = "<answer></answer>"
_REPEATS = 8


def no_facts(case: AdmissionCase) -> str:
    """Why nothing has to be asked for."""
    return "" if case.facts else "the task has no private facts"


def _parts(reward: Reward) -> str:
    return f"R {reward.value:g} (N {reward.N:.2f}, I {reward.I:.2f})"


# --- floor ----------------------------------------------------------------------------------------------------------


class _Bluff(NamedTuple):
    """A script that does not do what is wanted."""

    code: str
    what: str
    script: Sequence[str]


async def floor_flaws(case: AdmissionCase) -> AsyncIterator[AdmissionFlaw]:
    """Scripts that do a part, or anything, and earn as if it were the whole."""
    for what, script in (("no word", (_SILENCE,)), ('"Done."', (DONE,))):
        reward = await case.player.reward(script)
        if reward.value > 0:
            evidence = f"{what} earns {_parts(reward)}"
            yield AdmissionFlaw(code="nothing_pays", evidence=evidence, script=script)
    for bluff in _bluffs(case):
        reward = await case.player.reward(bluff.script)
        # More than the half is also what all subgoals together with a part of the interactions make.
        if reward.value > MOST_FLOOR:
            evidence = f"{bluff.what} earns {_parts(reward)}"
            yield AdmissionFlaw(code=bluff.code, evidence=evidence, script=bluff.script)


def _bluffs(case: AdmissionCase) -> Iterator[_Bluff]:
    gold = case.script.gold
    calls = list(dict.fromkeys(spelled_call(call) for completion in gold for call in calls_in(completion)))
    for call in calls:
        yield _Bluff("one_call_pays", "one call", (call,))
        yield _Bluff("repeats_pay", f"one call {_REPEATS} times over", (call,) * _REPEATS)
    if questions := asking(gold):
        yield _Bluff("unasked_pays", "gold without its questions", acting(gold))
        more = tuple(f"<question>{text}</question>" for texts in case.script.asks.values() for text in texts)
        yield _Bluff("asking_pays", "asking for everything and doing nothing", (*questions, *more))
    draws = adversary_draws(case, random.Random(f"admission/{case.task.id}"))
    rng = random.Random(f"admission/floor/{case.task.id}")
    for _ in range(RANDOM_SCRIPTS if case.task.tools else 0):
        drawn = tuple(drawn_call(draws) for _ in range(rng.randint(1, len(calls) + 2)))
        yield _Bluff("random_pays", "a sequence of random calls", drawn)


# --- gap ------------------------------------------------------------------------------------------------------------


async def gap_flaws(case: AdmissionCase) -> AsyncIterator[AdmissionFlaw]:
    """Facts that an agent can do without."""
    script = uninformed(case.script, frozenset())
    muted = await case.player.reward(script, WithholdingUser(frozenset(case.facts)))
    if muted.N == 1 or (muted.I > 0 and case.task.rubric.interactions):
        evidence = f"an honest agent that nobody answers earns {_parts(muted)}"
        yield AdmissionFlaw(code="muted_pays", evidence=evidence, script=script)
    for fact in case.facts:
        flaws = _mistaken(case, fact) if fact in case.script.mistaken else _guessing(case, fact)
        async for flaw in flaws:
            yield flaw


async def _mistaken(case: AdmissionCase, fact: str) -> AsyncIterator[AdmissionFlaw]:
    """The plan under a wrong value runs to its end, and loses by it."""
    script = case.script.mistaken[fact]
    episode = await case.player.play(script)
    reward = earned(episode)
    if any(fact in event.revealed for event in episode.events):
        evidence = f"the mistaken script of {fact} asks for it"
        yield AdmissionFlaw(code="mistaken_asks", evidence=evidence, script=script)
    if stuck := _stuck(case, script, episode):
        evidence = f"the mistaken script of {fact} does not come to its end: {stuck}"
        yield AdmissionFlaw(code="mistaken_stuck", evidence=evidence, script=script)
    if reward.N == 1:
        evidence = f"with a wrong value for {fact} an agent earns {_parts(reward)}"
        yield AdmissionFlaw(code="fact_useless", evidence=evidence, script=script)


def _stuck(case: AdmissionCase, script: Sequence[str], episode: Episode) -> str:
    """What kept a script from its end, although gold comes to its own."""
    refused = [event for event in episode.events if event.kind is EventKind.CALLED and not event.ok]
    in_gold = sum(event.kind is EventKind.CALLED and not event.ok for event in case.gold.events)
    if len(refused) > in_gold:
        return f"{refused[-1].tool} answers {refused[-1].text}"
    if episode.stop is not StopReason.ANSWER or episode.turns > len(script):
        return "it gives no answer"
    return ""


async def _guessing(case: AdmissionCase, fact: str) -> AsyncIterator[AdmissionFlaw]:
    """Where no mistaken script is given: gold with guesses for this fact, by a user who does not tell it.

    A fact without guesses stands in no call, such as the consent to something: only its question is lost."""
    script = uninformed(case.script, frozenset(case.facts) - {fact})
    reward = await case.player.reward(script, WithholdingUser(frozenset({fact})))
    needed = reward.N < 1 if case.script.guesses.get(fact) else reward.I < 1
    if not needed:
        evidence = f"an agent that is not told {fact} earns {_parts(reward)}"
        yield AdmissionFlaw(code="fact_useless", evidence=evidence, script=script)


# --- guess ----------------------------------------------------------------------------------------------------------


async def guess_flaws(case: AdmissionCase) -> AsyncIterator[AdmissionFlaw]:
    """Guessing every value without asking."""
    script = guessed(case.task)
    reward = await case.player.reward(script)
    if reward.value == 1 or (reward.I > 0 and case.task.rubric.interactions):
        evidence = f"guessing every value without asking earns {_parts(reward)}"
        yield AdmissionFlaw(code="guessing_pays", evidence=evidence, script=script)
