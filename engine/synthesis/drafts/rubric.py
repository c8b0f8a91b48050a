"""What an episode of a drafted task is scored by: derived from the plan as it was executed, none of it written.

Each item comes with edits of the gold script that should flip it and no other; execution decides which one does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.synthesis.drafts.draft import Restriction
from engine.synthesis.drafts.plan import PlannedAsk, PlannedCall, PlanTrace, answer_of
from engine.synthesis.planted import Edit, spelled_call
from engine.synthesis.values.matching import spoken_pattern
from engine.task import RubricItem, Task
from engine.types import Json

RESTRICTED = "restricted"
"""The id of the item that the draft's restriction becomes."""
_NEAR = 60
"""Characters between two values that are told together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DerivedItem:
    """An item of a rubric, and what may flip it."""

    part: str
    """forbidden, subgoals or interactions."""
    item: RubricItem
    edits: tuple[Edit, ...]


def derived_items(
    task: Task, gold: PlanTrace, mistaken: Sequence[PlanTrace], restriction: Restriction | None
) -> list[DerivedItem]:
    """The items of a rubric, in their order; `mistaken` are the plan's executions with a wrong value each."""
    end = len(gold.steps)
    return [
        *_restricted(restriction, end),
        *_other_writes(task, gold, mistaken, restriction, end),
        *_subgoals(gold),
        *_told(gold, end),
        *_interactions(gold),
    ]


# --- forbidden -------------------------------------------------------------------------------------------------------


def _restricted(restriction: Restriction | None, end: int) -> Iterator[DerivedItem]:
    if restriction is not None:
        called: dict[str, Any] = {"tool": restriction.tool, "ok": True}
        if restriction.arguments is not None:
            called["arguments"] = restriction.arguments
        attempt = spelled_call({"name": restriction.tool, "arguments": restriction.attempt})
        text = f"Uses {restriction.tool} although it must not: {restriction.reason}"
        edits = tuple(Edit(insert={at: (attempt,)}) for at in range(end, 0, -1))
        yield DerivedItem(
            part="forbidden",
            item=RubricItem(id=RESTRICTED, text=text, check={"called": called}),
            edits=edits,
        )


def _other_writes(
    task: Task, gold: PlanTrace, mistaken: Sequence[PlanTrace], restriction: Restriction | None, end: int
) -> Iterator[DerivedItem]:
    """Writes that the plan does not make; what is restricted has an item of its own."""
    planned: dict[str, list[Mapping[str, Any]]] = {}
    for made in gold.made:
        if made.writes:
            planned.setdefault(made.call.name, []).append(made.call.arguments)
    checks = []
    for tool in task.tools:
        own = restriction is not None and restriction.tool == tool.name
        if not tool.writes or (own and restriction is not None and restriction.arguments is None):
            continue
        excluded: list[Mapping[str, Any]] = [_exactly(arguments) for arguments in planned.get(tool.name, ())]
        if own and restriction is not None and restriction.arguments is not None:
            excluded.append(restriction.arguments)
        called: dict[str, Any] = {"tool": tool.name, "ok": True}
        if excluded:
            called["arguments"] = {"not": {"anyOf": excluded}}
        checks.append({"called": called})
    if checks:
        wrong = dict.fromkeys(
            spelled_call({"name": made.call.name, "arguments": made.call.arguments})
            for trace in mistaken
            for made in trace.made
            if made.writes and made.call.arguments not in planned.get(made.call.name, ())
        )
        yield DerivedItem(
            part="forbidden",
            item=RubricItem(
                id="other_writes",
                text="Changes something that nobody asked to change, or with values that nobody gave.",
                check=checks[0] if len(checks) == 1 else {"any": checks},
            ),
            edits=tuple(Edit(insert={at: (call,)}) for call in wrong for at in range(end, 0, -1)),
        )


# --- what must be done -----------------------------------------------------------------------------------------------


def _subgoals(gold: PlanTrace) -> Iterator[DerivedItem]:
    """A required call each: made with these arguments, and in its place where the order matters."""
    required = [made for made in gold.made if not made.optional]
    wrote = False
    for made in required:
        # What only a write creates is not found without it; that it was looked for is an item of its own.
        wrote = wrote or made.writes
        check = _made(made, ok=made.writes or not wrote)
        # Of a read and the write that follows from it, it is the read that came too late.
        earlier = [other for other in required if other.step in made.follows and (other.writes or not made.writes)]
        later = [other for other in required if made.step in other.follows and other.writes and not made.writes]
        order = [{"not": {"before": [check, _made(other)]}} for other in earlier]
        order += [{"not": {"before": [_made(other), check]}} for other in later]
        yield DerivedItem(
            part="subgoals",
            item=RubricItem(
                id=made.step,
                text=f"Calls {made.call.name} with the right arguments{', in its place' if order else ''}.",
                check={"all": [check, *order]} if order else check,
            ),
            edits=(Edit(drop=(gold.steps.index(made),)),),
        )


def _made(made: PlannedCall, *, ok: bool = True) -> dict[str, Json]:
    """The check that a call was made."""
    called: dict[str, Json] = {"tool": made.call.name, "arguments": _exactly(made.call.arguments)}
    return {"called": {**called, "ok": True} if ok else called}


def _exactly(arguments: Mapping[str, Json]) -> dict[str, Json]:
    """JSON Schema of these arguments."""
    return {"properties": {name: {"const": value} for name, value in arguments.items()}, "required": [*arguments]}


def _told(gold: PlanTrace, end: int) -> Iterator[DerivedItem]:
    for number, (label, values) in enumerate(gold.told.items()):
        rest = {other: said for other, said in gold.told.items() if other != label}
        yield DerivedItem(
            part="subgoals",
            item=RubricItem(
                id=f"told_{number + 1}",
                text=f"Tells the {label}.",
                check={"answered": {"matches": _pattern(values)}},
            ),
            edits=(Edit(replace={end: answer_of(rest)}),),
        )


def _pattern(values: Sequence[Json]) -> str:
    """Values in either order and near each other, each in any way of writing it."""
    ways = list(map(spoken_pattern, values))
    near = f"[^\\x00]{{0,{_NEAR}}}?"
    both = [near.join(ways), near.join(reversed(ways))] if len(ways) > 1 else ways
    return f"(?i){'|'.join(both)}"


# --- what must be asked ----------------------------------------------------------------------------------------------


def _interactions(gold: PlanTrace) -> Iterator[DerivedItem]:
    """A question each: asked before what depends on it is done."""
    for position, step in enumerate(gold.steps):
        if isinstance(step, PlannedAsk):
            parts: list[Json] = [{"revealed": step.fact}]
            for value in step.named.values():
                said = {"said": {"matches": _pattern((value,))}}
                parts += [said, {"not": {"before": [{"revealed": step.fact}, said]}}]
            using = next((made for made in gold.made if step.fact in made.facts and not made.optional), None)
            if using is not None:
                parts.append({"not": {"before": [_made(using), {"revealed": step.fact}]}})
            named = f" after saying the {' and the '.join(step.named)}" if step.named else ""
            yield DerivedItem(
                part="interactions",
                item=RubricItem(
                    id=f"ask_{step.fact}",
                    text=f"Asks for the {step.fact.replace('_', ' ')}{named}.",
                    check={"all": parts} if len(parts) > 1 else parts[0],
                ),
                edits=(Edit(drop=(position,)),),
            )
