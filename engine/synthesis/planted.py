"""Planted trajectories: what a task's gold script becomes when one thing is left out, done wrong, forbidden or guessed.

They prove a rubric (docs/packs.md#scripts): each flips exactly its own item, and doing nothing earns 0. A task
carries its script in ``meta``, which no agent sees::

    gold      the completions of a perfect episode, in order
    planted   rubric item id -> edit of the gold script that flips this item and no other
    guesses   fact -> [[gold literal, plausible wrong literal], ...]: what stands in the arguments of a call when the
              agent does not know the fact
    asks      fact -> other questions that a person would ask to learn it
    mistaken  fact -> the completions of an agent that takes a plausible wrong value instead of asking for the fact, and
              goes through the plan to its end

Positions in an edit are those of the gold script: ``{"drop": [2], "replace": {"3": text}, "insert": {"5": [text]}}``
(inserted before).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from engine.errors import ConfigError
from engine.task import Task, Tool

DONE = "<answer>Done.</answer>"
_CALL = re.compile(r"(<tool_call>)(.*?)(</tool_call>)", re.DOTALL)
_UNREADABLE = 'a call is <tool_call>{"name": "...", "arguments": {...}}</tool_call>'


class Edit(BaseModel):
    """A change to the gold script."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    drop: tuple[int, ...] = ()
    replace: Mapping[int, str] = {}
    insert: Mapping[int, tuple[str, ...]] = {}

    def apply(self, script: Sequence[str]) -> tuple[str, ...]:
        """The script with this change."""
        edited: list[str] = []
        for position, completion in enumerate(script):
            edited.extend(self.insert.get(position, ()))
            if position not in self.drop:
                edited.append(self.replace.get(position, completion))
        return tuple(edited)

    @property
    def positions(self) -> set[int]:
        """The positions that it touches."""
        return {*self.drop, *self.replace, *self.insert}


class Script(BaseModel):
    """The part of a task's meta that this module reads."""

    model_config = ConfigDict(frozen=True)

    gold: tuple[str, ...]
    planted: Mapping[str, Edit]
    guesses: Mapping[str, tuple[tuple[Any, Any], ...]] = {}
    asks: Mapping[str, tuple[str, ...]] = {}
    mistaken: Mapping[str, tuple[str, ...]] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Planted:
    """One planted trajectory."""

    name: str
    completions: tuple[str, ...]
    flips: frozenset[str]
    """Ids of the rubric items whose verdict is not the one that gold gets."""


def script(task: Task) -> Script:
    """The script of a task.

    Raises ConfigError where meta has none, or where it does not fit the task's rubric and facts."""
    try:
        found = Script.model_validate(task.meta)
    except ValidationError as problem:
        first = problem.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(
            f"task {task.id}: meta.{where}: {first['msg']}; docs/packs.md#scripts has an example"
        ) from problem
    _fits(task, found)
    return found


def _fits(task: Task, found: Script) -> None:
    if found.planted.keys() != _item_ids(task):
        raise ConfigError(f"task {task.id}: meta.planted must name every rubric item, and nothing else")
    for item, edit in found.planted.items():
        if not edit.positions or not edit.positions <= set(range(len(found.gold))):
            raise ConfigError(f"task {task.id}: meta.planted.{item} must touch positions of the gold script")
    facts = set(task.user.facts) if task.user else set()
    for field, named in (("guesses", found.guesses), ("asks", found.asks), ("mistaken", found.mistaken)):
        if named.keys() - facts:
            raise ConfigError(f"task {task.id}: meta.{field} names what is no fact of the user")
    for field, completions in _scripts(found):
        for position, completion in enumerate(completions):
            if not _readable(completion):
                raise ConfigError(f"task {task.id}: meta.{field}.{position}: {_UNREADABLE}")
            for call in calls_in(completion):
                _named(task, call)


def _scripts(found: Script) -> Iterator[tuple[str, Sequence[str]]]:
    yield "gold", found.gold
    yield from ((f"mistaken.{fact}", completions) for fact, completions in found.mistaken.items())


def _readable(completion: str) -> bool:
    try:
        calls = calls_in(completion)
        return all(isinstance(call["name"], str) and isinstance(call["arguments"], dict) for call in calls)
    except (ValueError, KeyError, TypeError):
        return False


def _item_ids(task: Task) -> set[str]:
    rubric = task.rubric
    return {item.id for part in (rubric.forbidden, rubric.subgoals, rubric.interactions) for item in part}


# --- one item at a time ---------------------------------------------------------------------------------------------


def planted(task: Task) -> list[Planted]:
    """Gold, gold with each rubric item flipped, and doing nothing.

    Raises ConfigError for a task without a script."""
    found = script(task)
    wanted = frozenset(item.id for part in (task.rubric.subgoals, task.rubric.interactions) for item in part)
    return [
        Planted(name="gold", completions=found.gold, flips=frozenset()),
        *(
            Planted(name=f"flips {item}", completions=edit.apply(found.gold), flips=frozenset({item}))
            for item, edit in found.planted.items()
        ),
        Planted(name="nothing", completions=(DONE,), flips=wanted),
    ]


# --- guessing -------------------------------------------------------------------------------------------------------


def guessed(task: Task) -> tuple[str, ...]:
    """The gold script of an agent that never asks: every private literal in its calls is a plausible guess."""
    return acting(uninformed(script(task), frozenset()))


def uninformed(found: Script, known: frozenset[str]) -> tuple[str, ...]:
    """The gold script of an agent that asks for everything and gets to know these facts: it guesses the others."""
    pairs = [pair for fact, guesses in found.guesses.items() if fact not in known for pair in guesses]

    def call(match: re.Match[str]) -> str:
        content = orjson.loads(match[2])
        content["arguments"] = _replaced(content["arguments"], pairs)
        return f"{match[1]}{orjson.dumps(content).decode()}{match[3]}"

    return tuple(_CALL.sub(call, completion) for completion in found.gold)


def acting(completions: Sequence[str]) -> tuple[str, ...]:
    """Those of the completions that do something besides talking to the user."""
    return tuple(completion for completion in completions if _acts(completion))


def asking(completions: Sequence[str]) -> tuple[str, ...]:
    """Those of the completions that talk to the user."""
    return tuple(completion for completion in completions if not _acts(completion))


def _acts(completion: str) -> bool:
    return "<tool_call>" in completion or "<answer>" in completion


def _replaced(value: Any, pairs: Sequence[tuple[Any, Any]]) -> Any:
    if isinstance(value, dict):
        return {name: _replaced(inner, pairs) for name, inner in value.items()}
    if isinstance(value, list):
        return [_replaced(inner, pairs) for inner in value]
    return next((wrong for right, wrong in pairs if type(right) is type(value) and right == value), value)


# --- the right things in the wrong order ----------------------------------------------------------------------------


def reordered(task: Task) -> list[Planted]:
    """Gold with all look-ups behind the writes, with all questions behind them, and with the read-backs before them.

    Each flips the items that leaving those steps out flips: what came too late, or too early, did not happen. A script
    that does not write, or has no such steps, has no such order."""
    found = script(task)
    written = [position for position, completion in enumerate(found.gold) if _writes(task, completion)]
    if not written:
        return []
    read = {position for position, completion in enumerate(found.gold) if calls_in(completion)} - set(written)
    asked = {position for position, completion in enumerate(found.gold) if not _acts(completion)}
    looked_up = {position for position in read if position < written[-1]}
    moves = {
        "looks up late": (looked_up, written[-1] + 1),
        "asks late": (asked, written[-1] + 1),
        "reads back early": (read - looked_up, written[0]),
    }
    return [_moved(found, name, steps, before) for name, (steps, before) in moves.items() if steps]


def _moved(found: Script, name: str, positions: set[int], before: int) -> Planted:
    moved = tuple(found.gold[position] for position in sorted(positions))
    edit = Edit(drop=tuple(positions), insert={before: moved})
    left_out = {item: {*edit.drop, *edit.replace} for item, edit in found.planted.items()}
    flips = frozenset(item for item, touched in left_out.items() if touched and touched <= positions)
    return Planted(name=name, completions=edit.apply(found.gold), flips=flips)


# --- more than was agreed -------------------------------------------------------------------------------------------


def sprayed(task: Task) -> Iterator[tuple[str, ...]]:
    """Gold with one write more, ahead of its own writes and after them: every argument of every write, changed in turn.

    A write that gold does not make gets gold's values where a parameter has the same name. A script that does not write
    has none."""
    gold = script(task).gold
    first = next((position for position, completion in enumerate(gold) if _writes(task, completion)), None)
    if first is None:
        return
    writes = [call for completion in gold for call in calls_in(completion) if _named(task, call).writes]
    values = {name: value for call in writes for name, value in call["arguments"].items()}
    used = {call["name"] for call in writes}
    unused = [
        {"name": tool.name, "arguments": {name: values.get(name, _any(schema)) for name, schema in _parameters(tool)}}
        for tool in task.tools
        if tool.writes and tool.name not in used
    ]
    changed = (
        {"name": call["name"], "arguments": {**call["arguments"], name: other}}
        for call in (*writes, *unused)
        for name, schema in _parameters(_named(task, call))
        if name in call["arguments"]
        for other in _others(schema, call["arguments"][name])
    )
    for more in changed:
        if more not in writes:
            for position in (first, len(gold) - 1):
                yield Edit(insert={position: (spelled_call(more),)}).apply(gold)


def stumbling(task: Task) -> tuple[str, ...]:
    """Gold with attempts ahead of each write that the world refuses: every argument is missing once."""
    found = script(task)
    attempts = {
        position: tuple(
            spelled_call({"name": call["name"], "arguments": _without(call["arguments"], name)})
            for call in calls_in(completion)
            for name in call["arguments"]
        )
        for position, completion in enumerate(found.gold)
        if _writes(task, completion)
    }
    return Edit(insert=attempts).apply(found.gold)


def calls_in(completion: str) -> list[dict[str, Any]]:
    """The calls of a completion of a script."""
    return [orjson.loads(match[2]) for match in _CALL.finditer(completion)]


def spelled_call(call: Mapping[str, Any]) -> str:
    """A call as a completion."""
    return f"<tool_call>{orjson.dumps(call).decode()}</tool_call>"


def _writes(task: Task, completion: str) -> bool:
    return any(_named(task, call).writes for call in calls_in(completion))


def _named(task: Task, call: Mapping[str, Any]) -> Tool:
    tool = task.tool(call["name"])
    if tool is None:
        raise ConfigError(f"task {task.id}: its script calls {call['name']}, which is no tool of it")
    return tool


def _parameters(tool: Tool) -> list[tuple[str, Mapping[str, Any]]]:
    declared = tool.parameters.get("properties", {})
    return [(name, schema if isinstance(schema, Mapping) else {}) for name, schema in declared.items()]


def _without(arguments: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {other: value for other, value in arguments.items() if other != name}


def _any(schema: Mapping[str, Any]) -> Any:
    """Some value of a parameter."""
    plain = {"boolean": False, "integer": schema.get("minimum", 1), "number": schema.get("minimum", 1), "array": []}
    return schema["enum"][0] if schema.get("enum") else plain.get(str(schema.get("type")), "something")


def _others(schema: Mapping[str, Any], value: Any) -> list[Any]:
    """Other values of a parameter: all of an enumeration, the next one of anything else; none of an object."""
    if schema.get("enum"):
        return [other for other in schema["enum"] if other != value]
    if isinstance(value, list):
        items = schema.get("items")
        choices = items.get("enum", ()) if isinstance(items, Mapping) else ()
        return [[*value, other] for other in choices if other not in value] + [[]] * bool(value)
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, str):
        return [value[:-1] + _following(value[-1])] if value else ["something"]
    if isinstance(value, int | float):
        return [value + 1 if value + 1 <= schema.get("maximum", value + 1) else value - 1]
    return []


def _following(character: str) -> str:
    """Another character of the same class, so that a pattern still holds."""
    for alphabet in ("0123456789", "abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ"):
        if character in alphabet:
            return alphabet[(alphabet.index(character) + 1) % len(alphabet)]
    return "x"
