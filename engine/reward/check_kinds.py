"""The kinds of rubric checks, one entry each: what it means, what its JSON looks like, how it is evaluated, what can be
wrong with it.

To add a kind, write the functions that its entry needs and the entry in CHECKS: evaluation, validation of packs and the
JSON Schema of a check read nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from engine.schema import validate as schema
from engine.schema.patterns import search
from engine.types import Event, EventKind, Json


class Decision(NamedTuple):
    """Whether a check holds, and the number of the event that decided it, where one did."""

    met: bool
    evidence: int | None


class Comparable(NamedTuple):
    """An event, and its arguments in the form in which they are compared."""

    event: Event
    arguments: Mapping[str, Any]


Evaluator = Callable[[Sequence[Comparable]], Decision]
"""Decides a check over the events of an episode, in their order."""


class Names(NamedTuple):
    """The tools and facts that a check may name, and where it stands."""

    tools: frozenset[str]
    facts: frozenset[str]
    ordered: bool = False
    """Whether a `before` is around the check."""


class CheckProblem(NamedTuple):
    """Where in a check, and the reason."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckKind:
    """One kind of check, `{name: body}` in a rubric."""

    says: str
    """One sentence: when a check of this kind is met, and what happens in which event."""
    example: Json
    """A body."""
    schema: Mapping[str, Any]
    """JSON Schema of a body; CHECK stands for a check inside it. `problems` refuses whatever it refuses, and more."""
    build: Callable[[Any], Evaluator]
    """Makes the evaluator of a body without problems."""
    problems: Callable[[Json, Names, str], Iterator[CheckProblem]]
    """Everything that is wrong with a body (any JSON), given the names of its task and the place of the check."""


def build_evaluator(check: Mapping[str, Any]) -> Evaluator:
    """Returns the evaluator of a check.

    Raises ValueError for what is not a check."""
    if not isinstance(check, Mapping) or len(check) != 1:
        raise ValueError(f"a check is an object with one key, not {check!r}")
    name, body = next(iter(check.items()))
    if name not in CHECKS:
        raise ValueError(f"unknown check {name!r}; known: {', '.join(CHECKS)}")
    return CHECKS[name].build(body)


def check_problems(check: Json, names: Names, path: str = "") -> Iterator[CheckProblem]:
    """Every reason for which a check is refused when its pack is loaded, so that no episode meets it first."""
    if not isinstance(check, Mapping) or len(check) != 1:
        yield CheckProblem(path, f"a check is an object with one key of {', '.join(CHECKS)}")
        return
    name, body = next(iter(check.items()))
    if name not in CHECKS:
        yield CheckProblem(path, f"unknown check {name!r}; known: {', '.join(CHECKS)}")
        return
    yield from CHECKS[name].problems(body, names, f"{path}.{name}")


CHECK: Mapping[str, Any] = {"$ref": "#/$defs/check"}
"""A check inside a body."""


def check_schema() -> dict[str, Any]:
    """Returns the JSON Schema of a check, with the sentence and the example of each kind."""
    kinds = [
        {
            "description": kind.says,
            "examples": [{name: kind.example}],
            "type": "object",
            "properties": {name: {"description": kind.says, **kind.schema}},
            "required": [name],
            "additionalProperties": False,
        }
        for name, kind in CHECKS.items()
    ]
    return {**CHECK, "$defs": {"check": {"oneOf": kinds}}}


class LeafCheck(NamedTuple):
    """A check that holds no others, inside of one that may."""

    path: str
    kind: str
    body: Json
    denied: bool
    """Whether an odd number of `not` stand around it."""


def leaf_checks(check: Mapping[str, Any], path: str = "", *, denied: bool = False) -> Iterator[LeafCheck]:
    """The checks without others inside that one without problems is made of; itself, if it holds none."""
    name, body = next(iter(check.items()))
    inner, held = f"{path}.{name}", CHECKS[name].schema
    if held is CHECK:
        yield from leaf_checks(body, inner, denied=denied != (name == "not"))
    elif held.get("items") is CHECK:
        for index, part in enumerate(body):
            yield from leaf_checks(part, f"{inner}[{index}]", denied=denied)
    else:
        yield LeafCheck(inner, name, body, denied)


# --- what the agent did ---------------------------------------------------------------------------------------------

_NEVER = Decision(met=False, evidence=None)


def _first(matches: Callable[[Event, Mapping[str, Any]], bool]) -> Evaluator:
    """Returns the evaluator that is decided by the first event that matches."""

    def evaluator(events: Sequence[Comparable]) -> Decision:
        for event, arguments in events:
            if matches(event, arguments):
                return Decision(met=True, evidence=event.number)
        return _NEVER

    return evaluator


def _called(body: Mapping[str, Any]) -> Evaluator:
    tool, ok = body["tool"], body.get("ok")
    fits = schema.compiled_schema(body.get("arguments", {}))
    return _first(
        lambda event, arguments: (
            event.kind is EventKind.CALLED
            and event.tool == tool
            and (ok is None or event.ok == ok)
            and fits(arguments) is None
        )
    )


def _called_problems(body: Json, names: Names, path: str) -> Iterator[CheckProblem]:
    if not isinstance(body, Mapping) or "tool" not in body or not body.keys() <= {"tool", "arguments", "ok"}:
        yield CheckProblem(path, "takes {tool, arguments?, ok?}")
        return
    if not isinstance(body["tool"], str) or body["tool"] not in names.tools:
        yield CheckProblem(f"{path}.tool", f"the task has no tool {body['tool']!r}")
    if "ok" in body and not isinstance(body["ok"], bool):
        yield CheckProblem(f"{path}.ok", "must be true or false")
    for where, reason in schema.argument_problems(body.get("arguments", {})):
        yield CheckProblem(f"{path}.arguments.{where}", reason)


def _revealed(fact: str) -> Evaluator:
    return _first(lambda event, _: event.kind is EventKind.SAID and fact in event.revealed)


def _revealed_problems(body: Json, names: Names, path: str) -> Iterator[CheckProblem]:
    if not isinstance(body, str) or body not in names.facts:
        yield CheckProblem(path, f"the user has no fact {body!r}")


def _matches(kind: EventKind) -> Callable[[Mapping[str, Any]], Evaluator]:
    def made(body: Mapping[str, Any]) -> Evaluator:
        found = search(body["matches"])
        return _first(lambda event, _: event.kind is kind and found(event.text))

    return made


def _matches_problems(body: Json, _names: Names, path: str) -> Iterator[CheckProblem]:
    if not isinstance(body, Mapping) or body.keys() != {"matches"} or not isinstance(body["matches"], str):
        yield CheckProblem(path, 'takes {"matches": "pattern"}')
        return
    try:
        search(body["matches"])
    except ValueError as error:
        yield CheckProblem(f"{path}.matches", str(error))


_PATTERN = {
    "type": "object",
    "properties": {"matches": {"type": "string", "description": "A regular expression (RE2)"}},
    "required": ["matches"],
    "additionalProperties": False,
}

# --- checks of checks -----------------------------------------------------------------------------------------------


def _of(decide: Callable[[Sequence[Decision]], Decision]) -> Callable[[Sequence[Mapping[str, Any]]], Evaluator]:
    """Returns what makes the evaluator of a list of checks, from what their decisions come to together."""

    def made(body: Sequence[Mapping[str, Any]]) -> Evaluator:
        parts = [build_evaluator(part) for part in body]
        return lambda events: decide([part(events) for part in parts])

    return made


def _several_problems(body: Json, names: Names, path: str, count: int | None = None) -> Iterator[CheckProblem]:
    if not isinstance(body, list) or not body or (count is not None and len(body) != count):
        yield CheckProblem(path, f"takes a list of {'at least one check' if count is None else f'{count} checks'}")
        return
    for index, inner in enumerate(body):
        yield from check_problems(inner, names, f"{path}[{index}]")


def _before(decisions: Sequence[Decision]) -> Decision:
    earlier, later = decisions
    if not (earlier.met and later.met) or earlier.evidence is None or later.evidence is None:
        return _NEVER
    return later if earlier.evidence < later.evidence else Decision(met=False, evidence=later.evidence)


def _before_problems(body: Json, names: Names, path: str) -> Iterator[CheckProblem]:
    yield from _several_problems(body, names._replace(ordered=True), path, 2)


def _all(decisions: Sequence[Decision]) -> Decision:
    if not all(decision.met for decision in decisions):
        return _NEVER
    last = max((decision.evidence for decision in decisions if decision.evidence is not None), default=None)
    return Decision(met=True, evidence=last)


def _any(decisions: Sequence[Decision]) -> Decision:
    met = [decision for decision in decisions if decision.met]
    first = min((decision.evidence for decision in met if decision.evidence is not None), default=None)
    return Decision(met=bool(met), evidence=first)


def _not(body: Mapping[str, Any]) -> Evaluator:
    inner = build_evaluator(body)

    def evaluator(events: Sequence[Comparable]) -> Decision:
        decision = inner(events)
        return Decision(met=not decision.met, evidence=decision.evidence if decision.met else None)

    return evaluator


def _not_problems(body: Json, names: Names, path: str) -> Iterator[CheckProblem]:
    if names.ordered:
        yield CheckProblem(path, "what did not happen has no place in an order: take it out of the `before`")
    yield from check_problems(body, names, path)


# --- the table ------------------------------------------------------------------------------------------------------

CHECKS: Mapping[str, CheckKind] = {
    "called": CheckKind(
        says="The agent called `tool`, where given with arguments that fit a JSON Schema and with that success (`ok`); "
        "it happens at the first such call.",
        example={"tool": "place_order", "arguments": {"properties": {"item": {"const": "apple"}}}, "ok": True},
        schema={
            "type": "object",
            "properties": {
                "tool": {"type": "string", "description": "A tool of the task"},
                "arguments": {"type": "object", "description": "JSON Schema of the arguments, defaults filled in"},
                "ok": {"type": "boolean", "description": "Whether the world accepted the call"},
            },
            "required": ["tool"],
            "additionalProperties": False,
        },
        build=_called,
        problems=_called_problems,
    ),
    "revealed": CheckKind(
        says="The user told this fact; it happens at the first question that was answered with it.",
        example="quantity",
        schema={"type": "string", "description": "A fact of the task's user"},
        build=_revealed,
        problems=_revealed_problems,
    ),
    "said": CheckKind(
        says="The agent said to the user what the pattern matches; it happens at the first such text.",
        example={"matches": "(?i)how many"},
        schema=_PATTERN,
        build=_matches(EventKind.SAID),
        problems=_matches_problems,
    ),
    "answered": CheckKind(
        says="The pattern matches the agent's final answer; it happens at the answer.",
        example={"matches": r"\b47\b"},
        schema=_PATTERN,
        build=_matches(EventKind.ANSWERED),
        problems=_matches_problems,
    ),
    "before": CheckKind(
        says="Both checks are met, the first in an earlier event than the second; it happens at the second.",
        example=[{"revealed": "quantity"}, {"called": {"tool": "place_order"}}],
        schema={"type": "array", "items": CHECK, "minItems": 2, "maxItems": 2},
        build=_of(_before),
        problems=_before_problems,
    ),
    "all": CheckKind(
        says="All of the checks are met; it happens at the last of them.",
        example=[{"revealed": "quantity"}, {"answered": {"matches": "47"}}],
        schema={"type": "array", "items": CHECK, "minItems": 1},
        build=_of(_all),
        problems=_several_problems,
    ),
    "any": CheckKind(
        says="At least one of the checks is met; it happens at the first of them.",
        example=[{"called": {"tool": "get_order"}}, {"called": {"tool": "list_orders"}}],
        schema={"type": "array", "items": CHECK, "minItems": 1},
        build=_of(_any),
        problems=_several_problems,
    ),
    "not": CheckKind(
        says="The check is not met; what never happened has no event, so it has no place inside a `before`.",
        example={"called": {"tool": "rush_order"}},
        schema=CHECK,
        build=_not,
        problems=_not_problems,
    ),
}
"""Every kind by its name in a rubric."""
