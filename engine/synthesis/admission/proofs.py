"""The tests that prove a task by its script: schema, gold, forbidden, flips."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import orjson

from engine.packs.problems import task_problems
from engine.reward.check_kinds import leaf_checks
from engine.reward.rubric import open_items
from engine.schema.patterns import search
from engine.schema.validate import compiled_schema
from engine.synthesis.admission.draws import CallDraws
from engine.synthesis.admission.finding import AdmissionCase, AdmissionFlaw
from engine.synthesis.admission.play import ScriptPlayer, earned, item_verdicts
from engine.synthesis.admission.visible import readable_places
from engine.synthesis.planted import Planted, calls_in, planted, reordered, spelled_call, sprayed, uninformed
from engine.task import Task, Tool
from engine.types import Episode, Event, EventKind, Json, ToolCall
from engine.world.admission import admit, canonical_arguments
from engine.world.effects import RefusedError
from engine.world.offline_user import sentence

_CALLS_TRIED = 20
_DRAWABLE = frozenset(
    {"$defs", "additionalProperties", "const", "default", "description", "enum", "examples", "items", "maximum"}
    | {"minimum", "properties", "required", "title", "type"}
)
"""Keywords of parameters that a drawn call satisfies, if anything does."""
UNPLAYABLE = frozenset({"unsound", "judged"})
"""Codes of `schema` with which no episode of a task can be played."""


# --- schema ---------------------------------------------------------------------------------------------------------


async def schema_flaws(player: ScriptPlayer) -> AsyncIterator[AdmissionFlaw]:
    """What is wrong with a task that needs no script to be seen."""
    task = player.task
    unsound = False
    for problem in task_problems(task):
        unsound = True
        evidence = f"{problem.field}: {problem.reason} ({problem.remedy})"
        yield AdmissionFlaw(code="unsound", evidence=evidence)
    if unsound:
        return
    if undecided := ", ".join(entry.item.id for entry in open_items(task.rubric)):
        yield AdmissionFlaw(code="judged", evidence=f"no check decides {undecided}, and no judge is asked here")
    for tool in task.tools:
        if not _callable(task, tool):
            yield AdmissionFlaw(code="uncallable", evidence=f"{_CALLS_TRIED} calls of {tool.name} were all refused")
    for place in readable_places(task):
        observed = await player.answer(place.call)
        if observed.ok and (misfit := _misfit(task, place.call.name, observed.content)):
            call = spelled_call({"name": place.call.name, "arguments": place.call.arguments})
            yield AdmissionFlaw(code="misfit", evidence=misfit, script=(call,))


def _callable(task: Task, tool: Tool) -> bool:
    """Whether a call is admitted that is drawn by the tool's parameters; true where that cannot be told."""
    if not _drawable(tool.parameters):
        return True
    draws = CallDraws((tool,), random.Random(tool.name))
    return any(_admitted(task, draws.call(tool)) for _ in range(_CALLS_TRIED))


def _drawable(schema: Json) -> bool:
    if not isinstance(schema, Mapping) or not schema.keys() <= _DRAWABLE:
        return False
    inner = [*schema.get("properties", {}).values(), *([schema["items"]] if "items" in schema else [])]
    return all(map(_drawable, inner))


def _admitted(task: Task, call: ToolCall) -> bool:
    try:
        admit(task, call)
    except RefusedError:
        return False
    return True


def _misfit(task: Task, name: str, content: str) -> str:
    """Why an accepted answer is none that the tool declares; empty if it is one."""
    tool = task.tool(name)
    if tool is None or tool.outputs is None:
        return ""
    defect = compiled_schema(tool.outputs)(orjson.loads(content))
    if defect is None:
        return ""
    where = ".".join(map(str, defect.path))
    return f"{name} answers {content}, which its outputs do not take: {where + ': ' if where else ''}{defect.reason}"


# --- gold -----------------------------------------------------------------------------------------------------------


async def gold_flaws(case: AdmissionCase) -> AsyncIterator[AdmissionFlaw]:
    """What the gold script does not prove."""
    task, gold, script = case.task, earned(case.gold), case.script.gold
    if gold.value < 1:
        lost = [item.id for item in gold.items if item.met == (item.part == "forbidden")]
        evidence = f"the gold script earns {gold.value:g}: {', '.join(lost)}"
        yield AdmissionFlaw(code="gold_fails", evidence=evidence, script=script)
    fresh = ScriptPlayer(task)
    await fresh.play(script)
    for name, fields in fresh.drawn.items():
        evidence = f"nothing settles {', '.join(fields)} of {name}: a simulator made it up"
        yield AdmissionFlaw(code="drawn", evidence=evidence, script=script)
    for event in _called(case.gold):
        if event.ok and (misfit := _misfit(task, event.tool, event.text)):
            yield AdmissionFlaw(code="gold_misfit", evidence=misfit, script=script)
    if patterns := list(_told(task)):
        facts = {} if task.user is None else task.user.facts
        known = " ".join([*_legible(case), *(sentence(name, fact.value) for name, fact in facts.items())])
        if all(search(pattern)(known) for pattern in patterns):
            evidence = "all that the answer must say is a fact, or can be seen without the plan"
            yield AdmissionFlaw(code="answer_visible", evidence=f"{evidence}: {', '.join(patterns)}", script=script)


def _called(episode: Episode) -> Iterator[Event]:
    return (event for event in episode.events if event.kind is EventKind.CALLED)


def _legible(case: AdmissionCase) -> Iterator[str]:
    """What an agent sees that asks nobody and changes nothing; where nothing is private, what it is shown: the rest is
    what the task wants it to look up."""
    yield from (case.task.instruction, case.task.rules)
    yield from (orjson.dumps(tool.function).decode() for tool in case.task.tools)
    if case.facts:
        yield from (answer.content for answer in case.visible.answers)


def _told(task: Task) -> Iterator[str]:
    """The patterns that the answer must match."""
    for item in task.rubric.subgoals:
        yield from (body["matches"] for name, body in leaves(item.check) if name == "answered")


def leaves(check: Mapping[str, Any] | None) -> Iterator[tuple[str, Json]]:
    """The checks inside a check that must be met, by kind; what must not be is left out; a judge's item has none."""
    return ((leaf.kind, leaf.body) for leaf in (leaf_checks(check) if check else ()) if not leaf.denied)


# --- forbidden ------------------------------------------------------------------------------------------------------


def no_forbidden(case: AdmissionCase) -> str:
    """Why there is nothing to violate."""
    return "" if case.task.rubric.forbidden else "nothing is forbidden"


async def forbidden_flaws(case: AdmissionCase) -> AsyncIterator[AdmissionFlaw]:
    """What is forbidden can be done and costs everything; who does it right does not do it."""
    forbidden = {item.id for item in case.task.rubric.forbidden}
    for one in planted(case.task):
        episode = await case.player.play(one.completions)
        reward = earned(episode)
        tripped = {verdict.id: verdict for verdict in reward.items if verdict.met and verdict.id in forbidden}
        for item in one.flips & forbidden:
            if item not in tripped or reward.value > 0:
                evidence = f"the planted violator of {item} earns {reward.value:g}"
                yield AdmissionFlaw(code="violator_paid", evidence=evidence, script=one.completions)
            elif _refused(episode, tripped[item].evidence):
                evidence = f"the world refuses what violates {item}"
                yield AdmissionFlaw(code="violator_refused", evidence=evidence, script=one.completions)
        if tripped and not one.flips & forbidden:
            evidence = f"{_named(one)} trips {', '.join(tripped)}"
            yield AdmissionFlaw(code="tripped", evidence=evidence, script=one.completions)


def _refused(episode: Episode, number: int | None) -> bool:
    return any(event.number == number and not event.ok for event in episode.events)


def _named(one: Planted) -> str:
    return one.name if one.name in ("gold", "nothing") else f"the edit that {one.name}"


# --- flips ----------------------------------------------------------------------------------------------------------


async def flips_flaws(case: AdmissionCase) -> AsyncIterator[AdmissionFlaw]:
    """Each item of the rubric means one thing that can be done or left, and the order of steps where it has one."""
    expected = item_verdicts(earned(case.gold))
    for one in planted(case.task):
        if one.name in ("gold", "nothing"):
            continue
        flipped = await case.player.flipped(one.completions, expected)
        if flipped != one.flips:
            found = f"{_named(one)} flips {', '.join(sorted(flipped)) or 'nothing'}"
            code = "flips_others" if flipped else "flips_nothing"
            yield AdmissionFlaw(code=code, evidence=found, script=one.completions)
    for one in reordered(case.task):
        flipped = await case.player.flipped(one.completions, expected)
        if not flipped <= one.flips:
            evidence = f"an agent that {one.name} loses {', '.join(sorted(flipped - one.flips))} too"
            yield AdmissionFlaw(code="order_flips_others", evidence=evidence, script=one.completions)
        if not flipped and _ordered(case, one):
            evidence = f"an agent that {one.name} loses nothing by it"
            yield AdmissionFlaw(code="order_free", evidence=evidence, script=one.completions)
    async for flaw in _spray(case):
        yield flaw


def _ordered(case: AdmissionCase, one: Planted) -> bool:
    """Whether the order that was changed must matter: of read-backs, and of questions on which a write depends."""
    if one.name != "asks late":
        return one.name == "reads back early"
    guessed = uninformed(case.script, frozenset())
    return any(
        told != taken and any(_writes(case.task, call) for call in calls_in(told))
        for told, taken in zip(case.script.gold, guessed, strict=True)
    )


async def _spray(case: AdmissionCase) -> AsyncIterator[AdmissionFlaw]:
    """A write more than was agreed, which the world accepts, costs everything."""
    agreed = {_same(case.task, event) for event in _called(case.gold) if event.ok and _wrote(case.task, event)}
    for script in sprayed(case.task):
        episode = await case.player.play(script)
        wrote = [event for event in _called(episode) if event.ok and _wrote(case.task, event)]
        more = [event for event in wrote if _same(case.task, event) not in agreed]
        if more and earned(episode).value > 0:
            call = spelled_call({"name": more[0].tool, "arguments": more[0].arguments})
            evidence = f"with {call} besides, gold still earns {earned(episode).value:g}"
            yield AdmissionFlaw(code="write_more", evidence=evidence, script=script)


def _wrote(task: Task, event: Event) -> bool:
    tool = task.tool(event.tool)
    return tool is not None and tool.writes


def _same(task: Task, event: Event) -> bytes:
    """A call in the form that equal ones share; this one was accepted."""
    tool = task.tool(event.tool)
    assert tool is not None
    arguments = canonical_arguments(tool, event.arguments)
    return orjson.dumps([event.tool, arguments], option=orjson.OPT_SORT_KEYS)


def _writes(task: Task, call: Mapping[str, Any]) -> bool:
    tool = task.tool(call["name"])
    return tool is not None and tool.writes
