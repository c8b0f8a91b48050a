"""Every test of admission over a task, in order; none stops the others, so that a card shows them all."""

from __future__ import annotations

from collections.abc import AsyncIterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.errors import ConfigError
from engine.synthesis.admission.climbing import SEARCH_EPISODES, search_flaws
from engine.synthesis.admission.finding import AdmissionCase, AdmissionFinding, AdmissionFlaw, AdmissionTest
from engine.synthesis.admission.floors import floor_flaws, gap_flaws, guess_flaws, no_facts
from engine.synthesis.admission.leaks import leak_flaws
from engine.synthesis.admission.play import ScriptPlayer
from engine.synthesis.admission.proofs import (
    UNPLAYABLE,
    flips_flaws,
    forbidden_flaws,
    gold_flaws,
    no_forbidden,
    schema_flaws,
)
from engine.synthesis.admission.visible import visible_to
from engine.synthesis.planted import Script, script
from engine.task import Task

TESTS: Mapping[str, AdmissionTest] = {
    "schema": AdmissionTest(
        passes="the task is sound, every tool can be called, and what the state answers fits the tools' `outputs`",
        codes={
            "unsound": "`pack check` refuses it",
            "judged": "an item has no check: it takes a judge to play the task",
            "uncallable": "no arguments fit the parameters of a tool",
            "misfit": "what a tool reads from the state is none of its `outputs`",
        },
        flaws=lambda case: schema_flaws(case.player),
    ),
    "gold": AdmissionTest(
        passes="the gold script earns 1, nothing on its way is made up, and something of the answer takes the plan",
        codes={
            "no_script": "`meta` has no gold script, or one that does not fit the task: it cannot be admitted",
            "gold_fails": "the gold script earns less than 1",
            "drawn": "neither the state nor a response settles an answer on its way",
            "gold_misfit": "an answer on its way is none of the tool's `outputs`",
            "answer_visible": "all that the answer must say is a fact, or can be read without the plan",
        },
        flaws=gold_flaws,
    ),
    "floor": AdmissionTest(
        passes="saying nothing and `Done.` earn 0; a part of gold, one call over and over, all questions, and 32 "
        "sequences of random calls earn at most 0.5",
        codes={
            "nothing_pays": "saying nothing, or `Done.`, earns something",
            "one_call_pays": "one call of gold is enough",
            "repeats_pay": "one call of gold, repeated, is enough",
            "unasked_pays": "gold without its questions is enough",
            "asking_pays": "asking for everything, and doing nothing, is enough",
            "random_pays": "random calls are enough",
        },
        flaws=floor_flaws,
    ),
    "gap": AdmissionTest(
        passes="an honest agent that nobody answers loses subgoals and every interaction; with a wrong value for any "
        "one fact the plan runs to its end, and loses subgoals",
        codes={
            "muted_pays": "an agent that nobody answers reaches all subgoals, or an interaction",
            "mistaken_asks": "the mistaken script of a fact asks for it",
            "mistaken_stuck": "the mistaken script does not come to its end: the world gives the mistake away",
            "fact_useless": "without a fact all subgoals are reached",
        },
        flaws=gap_flaws,
        absent=no_facts,
    ),
    "guess": AdmissionTest(
        passes="guessing every value without asking earns less than 1, and no interaction",
        codes={"guessing_pays": "guessing earns 1, or an interaction"},
        flaws=guess_flaws,
        absent=no_facts,
    ),
    "leak": AdmissionTest(
        passes="no private value stands in what the agent is shown, or can read without knowing one",
        codes={
            "leak_shown": "instruction, rules or a tool say a private value, in whatever spelling",
            "leak_read": "a call whose arguments are all visible is answered with one",
        },
        flaws=leak_flaws,
        absent=no_facts,
    ),
    "forbidden": AdmissionTest(
        passes="the world lets each planted violation happen, and it earns 0; gold and its other edits violate nothing",
        codes={
            "violator_paid": "a planted violation earns something, or is not seen",
            "violator_refused": "the world refuses it, so that nobody can be blamed for it",
            "tripped": "gold, or an edit of it that violates nothing, trips it",
        },
        flaws=forbidden_flaws,
        absent=no_forbidden,
    ),
    "flips": AdmissionTest(
        passes="each planted edit flips its own item and no other; steps out of order lose no more than those steps, "
        "questions behind the write that depends on them and read-backs before it lose something, and one write more "
        "than gold makes loses everything",
        codes={
            "flips_nothing": "an edit loses nothing",
            "flips_others": "an edit loses other items, or others too",
            "order_flips_others": "steps out of order lose items of other steps",
            "order_free": "questions behind the write, or read-backs before it, lose nothing",
            "write_more": "gold with one write more still earns something",
        },
        flaws=flips_flaws,
    ),
    "search": AdmissionTest(
        passes="an adversary that climbs its reward, asks nothing and knows no private value earns at most 0.35, and "
        "never an item that takes a write or the answer",
        codes={
            "search_decides": "it gets an item that takes a write or the answer",
            "search_pays": "it earns more than 0.35, or all subgoals",
        },
        flaws=search_flaws,
        absent=lambda case: no_facts(case) or ("" if case.task.tools else "the task has no tools"),
    ),
}
"""Every test by its name, in the order in which they are applied."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskAdmission:
    """What all tests say of a task."""

    task_id: str
    findings: Sequence[AdmissionFinding]

    @property
    def admitted(self) -> bool:
        """Whether no test failed; one that does not apply is no obstacle."""
        return all(finding.result != "failed" for finding in self.findings)

    def json(self) -> dict[str, Any]:
        """One JSON object: every test with its result, the codes that it found, and the scripts that show them."""
        return {
            "task": self.task_id,
            "admitted": self.admitted,
            "tests": {
                finding.test: {"result": finding.result}
                | ({"why": finding.why} if finding.why else {})
                | ({"flaws": [_flaw_json(flaw) for flaw in finding.flaws]} if finding.flaws else {})
                for finding in self.findings
            },
        }


async def admission_of(task: Task, episodes: int = SEARCH_EPISODES) -> TaskAdmission:
    """Apply every test to a task; `episodes` are those of the adversary in `search`.

    The same task is always told the same."""
    player = ScriptPlayer(task)
    schema = await _applied("schema", schema_flaws(player))
    if any(flaw.code in UNPLAYABLE for flaw in schema.flaws):
        return _without(task, [schema], "no episode of the task can be played")
    try:
        found = script(task)
    except ConfigError as error:
        flaw = AdmissionFlaw(code="no_script", evidence=f"it cannot be admitted without a script: {error}")
        gold = AdmissionFinding(test="gold", result="failed", flaws=(flaw,))
        return _without(task, [schema, gold], "there is no script to play")
    case = await _case(player, found, episodes)
    findings = [schema]
    for name, test in TESTS.items():
        if name != schema.test:
            why = test.absent(case)
            applied = None if why else await _applied(name, test.flaws(case))
            findings.append(applied or AdmissionFinding(test=name, result="not applicable", why=why))
    return TaskAdmission(task_id=task.id, findings=findings)


async def _case(player: ScriptPlayer, found: Script, episodes: int) -> AdmissionCase:
    gold = await player.play(found.gold)
    visible = await visible_to(player)
    return AdmissionCase(task=player.task, script=found, player=player, gold=gold, visible=visible, episodes=episodes)


async def _applied(name: str, flaws: AsyncIterable[AdmissionFlaw]) -> AdmissionFinding:
    """What a test found: the first flaw of each code."""
    first: dict[str, AdmissionFlaw] = {}
    async for flaw in flaws:
        first.setdefault(flaw.code, flaw)
    return AdmissionFinding(test=name, result="failed" if first else "passed", flaws=tuple(first.values()))


def _without(task: Task, found: Sequence[AdmissionFinding], why: str) -> TaskAdmission:
    """The findings of a task that the other tests could not be applied to."""
    known = {finding.test for finding in found}
    others = [AdmissionFinding(test=name, result="not applicable", why=why) for name in TESTS if name not in known]
    return TaskAdmission(task_id=task.id, findings=[*found, *others])


def _flaw_json(flaw: AdmissionFlaw) -> dict[str, Any]:
    return {"code": flaw.code, "evidence": flaw.evidence, "script": list(flaw.script)}
