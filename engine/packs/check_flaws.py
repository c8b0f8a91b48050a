"""Flaws of rubrics: checks that doing nothing meets, that no call can meet, or that a forbidden one takes back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from engine.packs.problems import Found
from engine.packs.reach import Reach, shown
from engine.reward.check_kinds import Comparable, LeafCheck, leaf_checks
from engine.reward.checks import evaluate_check
from engine.reward.rubric import rubric_items
from engine.schema.canonical import compact, same
from engine.schema.validate import member_defect
from engine.task import Task, Tool
from engine.types import Event, EventKind, Json

_PARTS = {"forbidden": "forbidden", "subgoal": "subgoals", "interaction": "interactions"}
"""Where the items of a part stand in a rubric."""


def _answering(text: str) -> Comparable:
    return Comparable(Event(number=0, turn=0, kind=EventKind.ANSWERED, text=text), {})


_NOTHING: Mapping[str, tuple[Comparable, ...]] = {
    "doing nothing": (),
    "an empty answer": (_answering(""),),
    "the answer 'Done.'": (_answering("Done."),),
}
"""Episodes without a call or a question, in words."""


def check_flaws(task: Task, reach: Reach) -> Iterator[Found]:
    """Every flaw of the checks of a task without problems."""
    items = list(_items(task))
    wanted = [item for item in items if item.part != "forbidden"]
    for item in wanted:
        met = next((how for how, events in _NOTHING.items() if evaluate_check(item.check, events).met), None)
        if met is not None:
            yield Found(item.field, f"{met} meets it", "ask for something that the agent has to do")
    for item in items:
        if item.part == "forbidden":
            yield from _taken_back(item, wanted)
    yield from _dead(task, items, reach)


class _Item(NamedTuple):
    """A rubric item that code decides, and the field of its check."""

    field: str
    part: str
    id: str
    check: Mapping[str, Any]


def _items(task: Task) -> Iterator[_Item]:
    places = dict.fromkeys(_PARTS, -1)
    for item, part in rubric_items(task.rubric):
        places[part] += 1
        if item.check is not None:
            yield _Item(f"rubric.{_PARTS[part]}[{places[part]}].check", part, item.id, item.check)


# --- what excludes each other ---------------------------------------------------------------------------------------


def _taken_back(forbidden: _Item, wanted: Sequence[_Item]) -> Iterator[Found]:
    for item in wanted:
        if _implies(item.check, forbidden.check):
            yield Found(
                forbidden.field,
                f"whoever meets {item.part} {item.id!r} meets it too, and earns 0",
                "forbid what a good episode does not do",
            )


def _implies(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether an episode that meets one check surely meets the other; False where it cannot be told."""
    (kind, body), (other_kind, other_body) = next(iter(one.items())), next(iter(other.items()))
    if same(one, other):
        return True
    if other_kind in ("all", "any"):
        parts = [_implies(one, part) for part in other_body]
        return all(parts) if other_kind == "all" else any(parts)
    if kind in ("all", "before"):
        return any(_implies(part, other) for part in body)
    if kind == "any":
        return all(_implies(part, other) for part in body)
    if kind == other_kind == "called":
        return all(name in body and same(body[name], other_body[name]) for name in other_body)
    return False


# --- what no call can meet ------------------------------------------------------------------------------------------


def _dead(task: Task, items: Sequence[_Item], reach: Reach) -> Iterator[Found]:
    """Checks of calls that no call can meet, each once."""
    seen = set[str]()
    for item in items:
        for leaf in leaf_checks(item.check, item.field):
            tool = task.tool(leaf.body["tool"]) if leaf.kind == "called" else None
            if tool is not None and not _refusal_may_count(item, leaf) and (call := compact(leaf.body)) not in seen:
                seen.add(call)
                yield from _dead_call(leaf, tool, reach)


def _refusal_may_count(item: _Item, leaf: LeafCheck) -> bool:
    """Whether a call that the world refuses may be what is meant: to forbid the attempt is no mistake."""
    ok = leaf.body.get("ok")
    return ok is False or (ok is None and (item.part == "forbidden" or leaf.denied))


def _dead_call(leaf: LeafCheck, tool: Tool, reach: Reach) -> Iterator[Found]:
    schema = leaf.body.get("arguments", {})
    if reason := _unfit(schema, tool.parameters):
        remedy = f"its parameters: {', '.join(tool.parameters.get('properties', {})) or '(none)'}"
        yield Found(f"{leaf.path}.arguments", f"no call that {tool.name} admits has {reason}", remedy)
        return
    refusal = reach.refusal(tool, _pinned(schema, tool)) if leaf.body.get("ok") else None
    if refusal is None:
        return
    every = reach.refusal(tool)
    # What every call of the tool suffers is a flaw of the tool.
    if every is None or every.empty:
        yield Found(
            leaf.path,
            f"the world refuses every such call: effect.{refusal.field} {refusal.reason}",
            "correct the arguments, or world.state",
        )


def _unfit(wanted: Json, declared: Mapping[str, Any]) -> str:
    """Why arguments that fit their declaration never fit `wanted`; empty where they may."""
    if not isinstance(wanted, Mapping):
        return ""
    reasons = [_unfit_member(name, inner, declared) for name, inner in wanted.get("properties", {}).items()]
    reasons += [_unknown(name, declared) for name in wanted.get("required", ())]
    reasons += [_unfit(inner, declared) for inner in wanted.get("allOf", ())]
    for several in ("anyOf", "oneOf"):
        each = [_unfit(inner, declared) for inner in wanted.get(several, ())]
        reasons += each[:1] if all(each) else []
    return next(filter(None, reasons), "")


def _unfit_member(name: str, inner: Json, declared: Mapping[str, Any]) -> str:
    if not isinstance(inner, Mapping):
        return ""
    if reason := _unknown(name, declared):
        return reason
    values = [inner["const"]] if "const" in inner else inner.get("enum", [])
    defects = [defect for value in values if (defect := member_defect(declared, name, value)) is not None]
    if values and len(defects) == len(values):
        return f"{name} = {shown(values[0])}: {defects[0].reason}"
    held = declared.get("properties", {}).get(name)
    return _unfit(inner, held) if isinstance(held, Mapping) else ""


def _unknown(name: str, declared: Mapping[str, Any]) -> str:
    closed = declared.get("additionalProperties") is False
    return f"an argument {name!r}" if closed and name not in declared.get("properties", {}) else ""


def _pinned(schema: Json, tool: Tool) -> dict[str, Json]:
    """The arguments that every fitting call has with one value."""
    if not isinstance(schema, Mapping):
        return {}
    there = {*schema.get("required", ()), *tool.parameters.get("required", ())}
    properties = schema.get("properties", {})
    return {
        name: inner["const"]
        for name, inner in properties.items()
        if name in there and isinstance(inner, Mapping) and "const" in inner
    }
