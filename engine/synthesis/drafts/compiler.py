"""Makes a task of a draft, without any model: world, rubric with checks, gold script and what must be refused.

draft ─▶ values ─▶ world ─▶ plan executed as gold ─▶ rubric, keywords, script ─▶ task
                        └─▶ plan executed with each wrong value (mistaken) ──┘

That gold earns everything proves only that the plan can be executed, for plan, gold and rubric are one source. What
finds wrong drafts is the mistaken plan: it must come to its end, and to something else than gold.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from engine.errors import ConfigError
from engine.packs.pack import parse_task, task_json
from engine.schema.validate import every_schema
from engine.synthesis.admission.play import ScriptPlayer, item_verdicts
from engine.synthesis.drafts.draft import AnswerStep, AskStep, BranchStep, CallStep, Draft, Step
from engine.synthesis.drafts.expressions import (
    WORDS,
    WRONG,
    DraftScope,
    ExpressionError,
    filled,
    filled_text,
    literals,
    references,
)
from engine.synthesis.drafts.keywords import keyworded, taught
from engine.synthesis.drafts.plan import (
    DraftError,
    PlannedAsk,
    PlannedCall,
    PlanTrace,
    completions,
    differing_steps,
    play_plan,
)
from engine.synthesis.drafts.rubric import RESTRICTED, DerivedItem, derived_items
from engine.synthesis.planted import Edit
from engine.synthesis.values.kinds import value_type
from engine.task import Task
from engine.types import Json


async def compile_draft(draft: Draft) -> Task:
    """The task of a draft, with its script in `meta` (docs/packs.md#scripts).

    What may break an item of the rubric is played, and is all that this awaits. Raises DraftError, which names step or
    fact, reason and remedy."""
    facts = frozenset(draft.world.facts)
    values = dict(_values(draft))
    scope = DraftScope(values=values, answers={})
    _require_visible(draft)
    described = _described(draft, scope)
    bare = _parsed(draft, {**described, "rubric": _ANY_RUBRIC})
    gold = play_plan(bare, draft.world.plan, values, facts)
    _require_once(gold)
    _require_said(draft, bare, values)
    mistaken = {name: _mistaken(draft, bare, values, name, gold) for name in draft.world.facts}
    questions = {name: fact.questions[0] for name, fact in draft.world.facts.items()}
    items = derived_items(bare, gold, [*mistaken.values()], draft.blueprint.restriction)
    task = _parsed(
        draft,
        {
            **described,
            "rubric": _rubric_json(items),
            "meta": {
                "gold": completions(gold, questions),
                "guesses": {name: _guesses(gold, trace) for name, trace in mistaken.items()},
                "asks": {name: list(taught(fact.questions)[1]) for name, fact in draft.world.facts.items()},
                "mistaken": {name: completions(trace, questions) for name, trace in mistaken.items()},
                "trade": draft.trade,
                "shape": shape(gold),
            },
        },
    )
    player, planted = ScriptPlayer(task), {}
    expected = item_verdicts(await player.reward(task.meta["gold"]))
    for derived in items:
        edit = await _edit(draft, player, expected, derived)
        planted[derived.item.id] = edit.model_dump(mode="json", exclude_defaults=True)
    return _parsed(draft, {**task_json(task), "meta": {**task.meta, "planted": planted}})


def shape(gold: PlanTrace) -> str:
    """The form of a plan: its kinds of steps, in order."""
    return " ".join(
        "ask" if isinstance(step, PlannedAsk) else "write" if step.writes else "read" for step in gold.steps
    )


# --- values and places -----------------------------------------------------------------------------------------------


def _values(draft: Draft) -> Iterator[tuple[str, Json]]:
    """What references mean: facts, what is wrong, and the words for each."""
    world = draft.world
    if both := world.facts.keys() & world.public.keys():
        raise DraftError("reference", f"fact {min(both)}", "is a public value too", "rename one")
    for name, public in world.public.items():
        _require_typed(f"public value {name}", public.type, public.value)
        yield name, public.value
    for name, fact in world.facts.items():
        _require_typed(f"fact {name}", fact.type, fact.value, fact.wrong)
        yield name, fact.value
        yield name + WRONG, fact.wrong
        yield name + WORDS, fact.say


def _require_typed(place: str, kind: str, *values: Json) -> None:
    try:
        of_kind = value_type(kind)
    except ValueError as error:
        raise DraftError("type", place, str(error), "correct the type") from None
    if (other := next((value for value in values if not of_kind.accepts(value)), None)) is not None:
        raise DraftError("type", place, f"{other!r} is no {kind}", "let the type and all of its values agree")


def _described(draft: Draft, scope: DraftScope) -> dict[str, Json]:
    """The task without rubric and script."""
    said, world = draft.instruction, draft.world
    try:
        return {
            "id": draft.id,
            "persona": draft.persona,
            "instruction": filled_text(said.instruction, scope),
            "rules": filled_text(said.rules, scope),
            "tools": [filled(tool, scope) for tool in draft.blueprint.tools],
            "workflow": list(draft.blueprint.workflow),
            "user": {
                "context": filled_text(said.background, scope),
                "facts": {
                    name: {"value": fact.value, "keywords": list(fact.keywords)}
                    for name, fact in keyworded(world.facts, scope.values).items()
                },
                "style": said.style,
                "escape_strategy": said.escape_strategy,
            }
            if world.facts
            else None,
            "world": {
                "state": filled(world.state, scope),
                "responses": [
                    {
                        "tool": response.tool,
                        "arguments": filled(response.arguments, scope),
                        "answer": filled(response.answer, scope),
                    }
                    for response in world.responses
                ],
            },
        }
    except ExpressionError as error:
        raise DraftError("reference", f"draft {draft.id}", str(error), "name a fact or a public value") from None


_ANY_RUBRIC: Mapping[str, Json] = {"subgoals": [{"id": "any", "text": "", "check": {"answered": {"matches": "."}}}]}
"""Stands in until the plan has been executed."""


def _rubric_json(items: Sequence[DerivedItem]) -> dict[str, list[Json]]:
    rubric: dict[str, list[Json]] = {"forbidden": [], "subgoals": [], "interactions": []}
    for derived in items:
        item = derived.item
        rubric[derived.part].append({"id": item.id, "text": item.text, "check": item.check})
    return rubric


def _parsed(draft: Draft, value: Mapping[str, Json]) -> Task:
    try:
        return parse_task(value)
    except ConfigError as error:
        raise DraftError("schema", f"draft {draft.id}", str(error), "docs/packs.md has the format") from None


def _require_once(gold: PlanTrace) -> None:
    """No two steps make the same call: a check is met by the first."""
    for at, made in enumerate(gold.made):
        if (first := next((other for other in gold.made[:at] if other.call == made.call), None)) is not None:
            reason = f"calls {made.call.name} as step {first.step} does, so that no check can tell them apart"
            raise DraftError("step", f"step {made.step}", reason, "leave it out, or call with other arguments")


# --- what must stand somewhere ---------------------------------------------------------------------------------------


def _require_visible(draft: Draft) -> None:
    """What the agent sees says nothing private, and what the user is told says everything."""
    said, world = draft.instruction, draft.world
    functions = [tool.get("function") for tool in draft.blueprint.tools]
    seen = {"the instruction": said.instruction, "the rules": said.rules, "a tool": functions}
    for place, text in seen.items():
        for reference in references(text):
            if reference not in world.public:
                remedy = "the agent sees this: say nothing of it, or make it a public value"
                raise DraftError("leak", place, f"refers to ${{{reference}}}", remedy)
    told = {reference.removesuffix(WORDS) for reference in references(said.background)}
    if missing := sorted(world.facts.keys() - told):
        remedy = f"say ${{{missing[0]}}} or ${{{missing[0]}|words}} in it"
        raise DraftError("background", "the background", f"does not say {', '.join(missing)}", remedy)
    if wrong := sorted(name for name in told if name.endswith(WRONG)):
        raise DraftError("background", "the background", f"says ${{{wrong[0]}}}", "say what is right")


def _require_said(draft: Draft, task: Task, values: Mapping[str, Json]) -> None:
    """A value in an argument that is neither asked nor answered stands where the agent can read it."""
    for step in _steps(draft.world.plan):
        if isinstance(step, CallStep):
            tool = task.tool(step.call)
            schema = tool.parameters if tool is not None else {}
            public = [values[name] for name in references(step.arguments) if name in draft.world.public]
            for literal in (*literals(step.arguments), *public):
                if not _stands(literal, task, schema):
                    reason = f"{literal!r} stands neither in instruction, rules nor the parameters of {step.call}"
                    remedy = "let the agent read it there, or take it from a fact or an answer"
                    raise DraftError("literal", f"step {step.id}", reason, remedy)


def _stands(literal: Json, task: Task, parameters: Mapping[str, Json]) -> bool:
    text = re.compile(rf"(?<!\w){re.escape(str(literal))}(?!\w)", re.IGNORECASE)
    return bool(text.search(task.instruction) or text.search(task.rules)) or literal in _choices(parameters)


def _choices(parameters: Mapping[str, Json]) -> Iterator[Json]:
    """What the enumerations, constants and defaults of a schema name."""
    for _, schema in every_schema(parameters):
        yield from schema.get("enum", ())
        yield from (schema[keyword] for keyword in ("const", "default") if keyword in schema)


def _steps(plan: Sequence[Step]) -> Iterator[AskStep | CallStep | AnswerStep]:
    """The steps of both sides of every branch."""
    for step in plan:
        if isinstance(step, BranchStep):
            yield from _steps(step.then)
            yield from _steps(step.otherwise)
        else:
            yield step


# --- the mistaken plan -----------------------------------------------------------------------------------------------


def _mistaken(draft: Draft, task: Task, values: Mapping[str, Json], name: str, gold: PlanTrace) -> PlanTrace:
    """What an agent does that takes the wrong value of a fact instead of asking."""
    fact = draft.world.facts[name]
    place = f"fact {name}"
    if name not in {asked.fact for asked in gold.asked}:
        raise DraftError("unused", place, "the plan never asks for it", "ask for it, or leave it out")
    taken = {**values, name: fact.wrong}
    try:
        trace = play_plan(task, draft.world.plan, taken, frozenset(draft.world.facts), assumed=name)
    except DraftError as error:
        reason = f"with the wrong value {fact.wrong!r} the plan does not come to its end: {error}"
        remedy = f"let the state have a row for ${{{name}{WRONG}}}, or take another wrong value"
        raise DraftError("mistaken", place, reason, remedy) from None
    differing = next(differing_steps(gold, trace), None)
    if differing is None and trace.told == gold.told:
        reason = f"taking {fact.wrong!r} without asking does all the same"
        raise DraftError("unused", place, reason, "let a call or the answer depend on it, or leave it out")
    _require_reason(draft, task, name, gold, trace, differing)
    return trace


def _require_reason(
    draft: Draft, task: Task, name: str, gold: PlanTrace, mistaken: PlanTrace, differing: str | None
) -> None:
    """The agent can see why it must ask: what the draft cites is there, and stands where the plans part."""
    because, place = draft.world.facts[name].because, f"fact {name}"
    remedy = (
        "cite TOOL.PARAMETER of the first call that it changes, STEP/POINTER of an answer before, or words of the rules"
    )
    step, slash, _ = because.partition("/")
    if slash and (cited := next((made for made in gold.made if made.step == step), None)) is not None:
        try:
            DraftScope(values={}, answers={step: cited.answer}).value(because)
        except ExpressionError as error:
            raise DraftError("askable", place, str(error), remedy) from None
        return
    tool, _, parameter = because.partition(".")
    if task.tool(tool) is not None:
        pair = [next((made for made in trace.made if made.step == differing), None) for trace in (gold, mistaken)]
        right, wrong = (made.call.arguments.get(parameter) if made is not None else None for made in pair)
        if pair[0] is None or pair[0].call.name != tool or right == wrong:
            reason = f"{because} is not what it changes first, which is {differing or 'the answer'}"
            raise DraftError("askable", place, reason, remedy)
    elif not because.strip() or " ".join(because.split()).casefold() not in " ".join(task.rules.split()).casefold():
        raise DraftError("askable", place, f"{because!r} is neither a parameter, an answer nor in the rules", remedy)


def _guesses(gold: PlanTrace, mistaken: PlanTrace) -> list[list[Json]]:
    """What stands in the calls of gold, and what somebody would guess instead."""
    wrong: dict[str, PlannedCall] = {made.step: made for made in mistaken.made}
    pairs: list[list[Json]] = []
    for made in gold.made:
        other = wrong.get(made.step)
        if other is not None and other.call.name == made.call.name:
            pairs += (
                [value, other.call.arguments[parameter]]
                for parameter, value in made.call.arguments.items()
                if parameter in other.call.arguments and other.call.arguments[parameter] != value
            )
    return [pair for at, pair in enumerate(pairs) if pair not in pairs[:at]]


# --- planted edits ---------------------------------------------------------------------------------------------------


async def _edit(draft: Draft, player: ScriptPlayer, expected: Mapping[str, bool], derived: DerivedItem) -> Edit:
    """The first edit of gold that flips this item and no other."""
    gold: Any = player.task.meta["gold"]
    flipped: frozenset[str] = frozenset()
    for edit in derived.edits:
        flipped = await player.flipped(edit.apply(gold), expected)
        if flipped == {derived.item.id}:
            return edit
    said = f"flips {', '.join(sorted(flipped)) or 'nothing'}" if derived.edits else "nothing is there to break it"
    reason = f"the item {derived.item.id} cannot be broken by itself: {said}"
    if derived.item.id == RESTRICTED:
        remedy = "let the world accept the attempt, and the plan do without it"
        raise DraftError("restriction", "the restriction", reason, remedy)
    raise DraftError("flips", f"draft {draft.id}", reason, "let each step of the plan do one thing of its own")
