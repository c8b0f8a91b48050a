"""Rubric checks: data evaluated over the numbered events of an episode.

A check *happens* at the number of the first event that makes it true: a leaf at its first match, `all` at the last of
its parts, `any` at the first, `before` at its second part's. `not` is true of what never happened: it has no number.
Arguments are compared in canonical form with schema defaults filled in: what is one call to the world is one call here.
The kinds of checks are in engine.reward.check_kinds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import orjson

from engine.reward.check_kinds import Comparable, Decision, Evaluator, build_evaluator
from engine.schema.canonical import canonical_object, compact
from engine.task import Task
from engine.types import Event, EventKind


def evaluate_check(check: Mapping[str, Any], events: Sequence[Comparable]) -> Decision:
    """Evaluate a check over events that :func:`comparable` prepared.

    Raises ValueError for what is not a check; packs are validated at load."""
    return compiled_check(check)(events)


def comparable(task: Task, events: Sequence[Event]) -> list[Comparable]:
    """Events in order, the arguments of calls in the form in which they are compared."""
    return [Comparable(event, _arguments(task, event)) for event in sorted(events, key=lambda event: event.number)]


def _arguments(task: Task, event: Event) -> Mapping[str, Any]:
    tool = task.tool(event.tool) if event.kind is EventKind.CALLED else None
    if tool is None:
        return event.arguments
    try:
        return canonical_object(tool.parameters, event.arguments)
    except ValueError:
        return event.arguments


def compiled_check(check: Mapping[str, Any]) -> Evaluator:
    """The evaluator of a check, made once per distinct check."""
    return _compiled(compact(check))


@lru_cache(maxsize=65_536)
def _compiled(encoded: str) -> Evaluator:
    return build_evaluator(orjson.loads(encoded))
