"""The test `search`: an adversary that asks nothing, knows no private value, and keeps what its reward rises by.

It draws calls from the tools' schemas, from what it is shown and from what it reads on its way; of its scripts it keeps
one that earns no less and violates nothing, and changes that. A private value, and what gold takes because of one, it
never draws: whether a lucky guess pays is what the test `guess` says, and with enough episodes every short code would
be found. From an episode in which it does what is forbidden, and so earns nothing, it learns nothing.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import chain

import orjson

from engine.synthesis.admission.draws import CallDraws, folded
from engine.synthesis.admission.finding import AdmissionCase, AdmissionFlaw
from engine.synthesis.admission.play import earned
from engine.synthesis.admission.proofs import leaves
from engine.synthesis.planted import DONE, Script, acting, calls_in, spelled_call
from engine.task import RubricItem, Task
from engine.types import Episode, EventKind, Json

SEARCH_EPISODES = 1000
MOST_SEARCH = 0.35
"""What the adversary may earn."""
_CLIMBS = 0.8
"""How often it goes on from its best script instead of beginning anew."""
_MOST_CALLS = 12
_MOST_SAID = 4000
"""Characters of an answer that says everything."""


async def search_flaws(case: AdmissionCase) -> AsyncIterator[AdmissionFlaw]:
    """What can be reached without a private value: a write, the answer, all subgoals, or too much reward."""
    rng = random.Random(f"admission/search/{case.task.id}")
    draws = adversary_draws(case, rng)
    decisive = {item.id for item in case.task.rubric.subgoals if decides(case.task, item)}
    best: tuple[str, ...] = ()
    highest = -1.0
    for _ in range(case.episodes):
        script = _changed(best if rng.random() < _CLIMBS else (), draws, rng)
        episode = await case.player.play(script)
        reward = earned(episode)
        if not reward.F:
            continue
        _learn(draws, episode)
        reached = sorted(verdict.id for verdict in reward.items if verdict.met and verdict.id in decisive)
        told = f"an agent that asks nothing and knows nothing private earns R {reward.value:g} (N {reward.N:.2f})"
        if reached:
            evidence = f"{told}, with {', '.join(reached)}"
            yield AdmissionFlaw(code="search_decides", evidence=evidence, script=script)
        if reward.value > MOST_SEARCH or reward.N == 1:
            yield AdmissionFlaw(code="search_pays", evidence=told, script=script)
        if reward.value >= highest:
            best, highest = script, reward.value


def decides(task: Task, item: RubricItem) -> bool:
    """Whether an item needs a write or the answer."""
    for name, body in leaves(item.check):
        tool = task.tool(body["tool"]) if name == "called" else None
        if name == "answered" or (tool is not None and tool.writes):
            return True
    return False


# --- what it knows --------------------------------------------------------------------------------------------------


def adversary_draws(case: AdmissionCase, rng: random.Random) -> CallDraws:
    """Draws of somebody who has read what can be read, and knows plausible wrong values."""
    draws = CallDraws(case.task.tools, rng, frozenset(map(folded, hidden_values(case.task, case.script))))
    for answer in case.visible.answers:
        draws.learn(answer.call.arguments)
        draws.learn(orjson.loads(answer.content))
    for guesses in case.script.guesses.values():
        draws.learn([wrong for _, wrong in guesses])
    return draws


def hidden_values(task: Task, found: Script) -> Iterator[Json]:
    """The private values, and what gold's calls have because of one: where a guess or a mistaken plan differs."""
    for fact in task.user.facts.values() if task.user is not None else ():
        yield from fact.value if isinstance(fact.value, list) else [fact.value]
    yield from (right for guesses in found.guesses.values() for right, _ in guesses)
    gold = set(_arguments(found.gold))
    for script in found.mistaken.values():
        yield from map(orjson.loads, gold - set(_arguments(script)))


def _arguments(script: Sequence[str]) -> Iterator[bytes]:
    """The single values in the calls of a script, as JSON."""
    for call in chain.from_iterable(map(calls_in, acting(script))):
        yield from map(orjson.dumps, _scalars(call["arguments"]))


def _scalars(value: Json) -> Iterator[Json]:
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _scalars(inner)
    else:
        yield value


def _learn(draws: CallDraws, episode: Episode) -> None:
    for event in episode.events:
        if event.kind is EventKind.CALLED and event.ok:
            draws.learn(orjson.loads(event.text))


# --- what it does ---------------------------------------------------------------------------------------------------


def drawn_call(draws: CallDraws) -> str:
    """A random call as a completion."""
    call = draws.call()
    return spelled_call({"name": call.name, "arguments": call.arguments})


def says_all(draws: CallDraws) -> str:
    """An answer that says all that is known."""
    said = ", ".join(map(str, draws.known))[:_MOST_SAID]
    # What is said is an answer, whatever tags somebody wrote into a state.
    return f"<answer>{said.replace('<', ' ')}</answer>" if said else DONE


def _changed(best: Sequence[str], draws: CallDraws, rng: random.Random) -> tuple[str, ...]:
    """The best script so far with a call more, less or another one, and an answer that says what is known by now."""
    calls = list(best[:-1])
    position = rng.randint(0, len(calls))
    kind = rng.random()
    if calls and kind < 0.2:
        del calls[min(position, len(calls) - 1)]
    elif calls and kind < 0.4:
        calls[min(position, len(calls) - 1)] = drawn_call(draws)
    else:
        calls[position:position] = [drawn_call(draws) for _ in range(rng.randint(1, 3))]
    return (*calls[:_MOST_CALLS], says_all(draws))
