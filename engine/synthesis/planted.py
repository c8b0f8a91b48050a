"""Planted trajectories: what a task's gold script becomes when one thing is left out, done wrong, forbidden or guessed.

They prove a rubric (WORLDS.md, task admission): each flips exactly its own item, and doing nothing earns 0. A task
carries its script in ``meta``, which no agent sees::

    gold      the completions of a perfect episode, in order
    planted   rubric item id -> edit of the gold script that flips this item and no other
    guesses   fact -> [[gold literal, plausible wrong literal], ...]: what stands in the arguments of a call when the
              agent does not know the fact

Positions in an edit are those of the gold script: ``{"drop": [2], "replace": {"3": text}, "insert": {"5": [text]}}``
(inserted before).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from engine.errors import ConfigError
from engine.task import Task

NOTHING = "<answer>Done.</answer>"
_CALL = re.compile(r"(<tool_call>)(.*?)(</tool_call>)", re.DOTALL)


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
        raise ConfigError(f"task {task.id}: meta.{where}: {first['msg']}; see engine.synthesis.planted") from problem
    _fits(task, found)
    return found


def _fits(task: Task, found: Script) -> None:
    if found.planted.keys() != _item_ids(task):
        raise ConfigError(f"task {task.id}: meta.planted must name every rubric item, and nothing else")
    for item, edit in found.planted.items():
        if not edit.positions or not edit.positions <= set(range(len(found.gold))):
            raise ConfigError(f"task {task.id}: meta.planted.{item} must touch positions of the gold script")
    facts = set(task.user.facts) if task.user else set()
    if found.guesses.keys() - facts:
        raise ConfigError(f"task {task.id}: meta.guesses names what is no fact of the user")


def _item_ids(task: Task) -> set[str]:
    rubric = task.rubric
    return {item.id for part in (rubric.forbidden, rubric.subgoals, rubric.interactions) for item in part}


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
        Planted(name="nothing", completions=(NOTHING,), flips=wanted),
    ]


def guessed(task: Task) -> tuple[str, ...]:
    """The gold script of an agent that never asks: every private literal in its calls is a plausible guess."""
    found = script(task)
    known: frozenset[str] = frozenset()
    return tuple(_uninformed(found, completion, known) for completion in found.gold if _acts(completion))


def informed(task: Task, position: int, known: frozenset[str]) -> str:
    """What an agent that knows these facts says at a position of the gold script: it guesses the others."""
    found = script(task)
    return _uninformed(found, found.gold[position], known)


def _acts(completion: str) -> bool:
    """Whether it does something besides talking to the user."""
    return "<tool_call>" in completion or "<answer>" in completion


def _uninformed(found: Script, completion: str, known: frozenset[str]) -> str:
    pairs = [pair for fact, guesses in found.guesses.items() if fact not in known for pair in guesses]

    def call(match: re.Match[str]) -> str:
        content = orjson.loads(match[2])
        content["arguments"] = _replaced(content["arguments"], pairs)
        return f"{match[1]}{orjson.dumps(content).decode()}{match[3]}"

    return _CALL.sub(call, completion)


def _replaced(value: Any, pairs: Sequence[tuple[Any, Any]]) -> Any:
    if isinstance(value, dict):
        return {name: _replaced(inner, pairs) for name, inner in value.items()}
    if isinstance(value, list):
        return [_replaced(inner, pairs) for inner in value]
    return next((wrong for right, wrong in pairs if type(right) is type(value) and right == value), value)
