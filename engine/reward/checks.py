"""Rubric checks: data evaluated over the numbered events of an episode.

A check *happens* at the number of the first event that makes it true: a leaf at its first match, `all` at the last of
its parts, `any` at the first, `before` at its second part's. `not` is true of what never happened: it has no number.
Arguments are compared in canonical form with schema defaults filled in: what is one call to the world is one call here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import orjson

from engine.schema import validate
from engine.schema.canonical import compact
from engine.schema.patterns import search
from engine.task import Task
from engine.types import Event, EventKind
from engine.world.effects import RefusedError
from engine.world.tools import canonical_arguments


class Decision(NamedTuple):
    """Whether a check holds, and the number of the event that decided it, where one did."""

    met: bool
    evidence: int | None


class Comparable(NamedTuple):
    """An event, and its arguments in the form in which they are compared."""

    event: Event
    arguments: Mapping[str, Any]


Evaluator = Callable[[Sequence[Comparable]], Decision]
_NEVER = Decision(met=False, evidence=None)


def evaluate(check: Mapping[str, Any], events: Sequence[Comparable]) -> Decision:
    """Evaluate a check over events that :func:`comparable` prepared.

    Raises ValueError for what is not a check; packs are validated at load."""
    return compiled(check)(events)


def comparable(task: Task, events: Sequence[Event]) -> list[Comparable]:
    """Events in order, the arguments of calls in the form in which they are compared."""
    return [Comparable(event, _arguments(task, event)) for event in sorted(events, key=lambda event: event.number)]


def _arguments(task: Task, event: Event) -> Mapping[str, Any]:
    tool = task.tool(event.tool) if event.kind is EventKind.CALLED else None
    if tool is None:
        return event.arguments
    try:
        return canonical_arguments(tool, event.arguments)
    except RefusedError:
        return event.arguments


def compiled(check: Mapping[str, Any]) -> Evaluator:
    """The evaluator of a check, made once per distinct check."""
    return _compiled(compact(check))


@lru_cache(maxsize=65_536)
def _compiled(encoded: str) -> Evaluator:
    return _build(orjson.loads(encoded))


def _build(check: Mapping[str, Any]) -> Evaluator:
    if not isinstance(check, Mapping) or len(check) != 1:
        raise ValueError(f"a check is an object with one key, not {check!r}")
    name, body = next(iter(check.items()))
    if name not in _BUILDERS:
        raise ValueError(f"unknown check {name!r}; known: {', '.join(_BUILDERS)}")
    return _BUILDERS[name](body)


def _first(matches: Callable[[Event, Mapping[str, Any]], bool]) -> Evaluator:
    def evaluator(events: Sequence[Comparable]) -> Decision:
        for event, arguments in events:
            if matches(event, arguments):
                return Decision(met=True, evidence=event.number)
        return _NEVER

    return evaluator


def _called(body: Mapping[str, Any]) -> Evaluator:
    tool, ok = body["tool"], body.get("ok")
    fits = validate.compiled(body.get("arguments", {}))
    return _first(
        lambda event, arguments: (
            event.kind is EventKind.CALLED
            and event.tool == tool
            and (ok is None or event.ok == ok)
            and fits(arguments) is None
        )
    )


def _revealed(fact: str) -> Evaluator:
    return _first(lambda event, _: event.kind is EventKind.SAID and fact in event.revealed)


def _matches(kind: EventKind) -> Callable[[Mapping[str, Any]], Evaluator]:
    def build(body: Mapping[str, Any]) -> Evaluator:
        found = search(body["matches"])
        return _first(lambda event, _: event.kind is kind and found(event.text))

    return build


def _before(body: Sequence[Mapping[str, Any]]) -> Evaluator:
    first, second = map(_build, body)

    def evaluator(events: Sequence[Comparable]) -> Decision:
        earlier, later = first(events), second(events)
        if not (earlier.met and later.met) or earlier.evidence is None or later.evidence is None:
            return _NEVER
        return later if earlier.evidence < later.evidence else Decision(met=False, evidence=later.evidence)

    return evaluator


def _all(body: Sequence[Mapping[str, Any]]) -> Evaluator:
    parts = [_build(part) for part in body]

    def evaluator(events: Sequence[Comparable]) -> Decision:
        decisions = [part(events) for part in parts]
        if not all(decision.met for decision in decisions):
            return _NEVER
        last = max((decision.evidence for decision in decisions if decision.evidence is not None), default=None)
        return Decision(met=True, evidence=last)

    return evaluator


def _any(body: Sequence[Mapping[str, Any]]) -> Evaluator:
    parts = [_build(part) for part in body]

    def evaluator(events: Sequence[Comparable]) -> Decision:
        met = [decision for decision in (part(events) for part in parts) if decision.met]
        first = min((decision.evidence for decision in met if decision.evidence is not None), default=None)
        return Decision(met=bool(met), evidence=first)

    return evaluator


def _not(body: Mapping[str, Any]) -> Evaluator:
    inner = _build(body)

    def evaluator(events: Sequence[Comparable]) -> Decision:
        decision = inner(events)
        return Decision(met=not decision.met, evidence=decision.evidence if decision.met else None)

    return evaluator


_BUILDERS: Mapping[str, Callable[[Any], Evaluator]] = {
    "called": _called,
    "revealed": _revealed,
    "said": _matches(EventKind.SAID),
    "answered": _matches(EventKind.ANSWERED),
    "before": _before,
    "all": _all,
    "any": _any,
    "not": _not,
}
