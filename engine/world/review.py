"""What a person should look at in the mapping of a task: what was merged, and what contradicts what."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import nlargest
from itertools import combinations
from typing import NamedTuple

import orjson

from engine.task import Task, Tool
from engine.world.meaning import differing, kind_of_call, likeness
from engine.world.states import Key, hash_after, key_of_row, key_of_same
from engine.world.store import MappingRow, Origin

Apart = Mapping[Key, Collection[Key]]

MOST_PAIRS = 40
"""Pairs of a task that are kept, the most alike ones."""


class Merge(NamedTuple):
    """A call that was given the answer of another one."""

    row: MappingRow
    flaw: str
    """Why that is wrong whatever the words mean; empty if it is not."""


class CallPair(NamedTuple):
    """Two calls of one world state that may mean the same, and have different answers."""

    likeness: float
    """How many of their words are in both, 0 to 1."""
    one: MappingRow
    other: MappingRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Reviewed:
    """One task's world."""

    name: str
    found: Counter[Origin]
    """Entries by how they were found."""
    writes: Mapping[str, int]
    """World states that there are, with the number of writes that lead to each."""
    merges: Sequence[Merge]
    pairs: Sequence[CallPair]
    """The most alike ones first."""
    all_pairs: int


def review(task: Task, rows: Sequence[MappingRow], withdrawn: Iterable[MappingRow], apart: Apart) -> Reviewed:
    """Look at the entries of one world of a task, `rows`, and at those that were withdrawn from it.

    `apart` are calls that people said do not mean the same."""
    answers = {(row.world, key_of_row(row)): row for row in rows}
    pairs = list(_pairs(task, rows, apart))
    return Reviewed(
        name=rows[0].task,
        found=Counter(row.source for row in rows),
        writes=_writes(task, [*rows, *withdrawn]),
        merges=[_merge(task, row, same, answers) for row in rows if (same := key_of_same(row)) is not None],
        pairs=nlargest(MOST_PAIRS, pairs, key=lambda pair: pair.likeness),
        all_pairs=len(pairs),
    )


def _merge(task: Task, row: MappingRow, same: Key, answers: Mapping[tuple[str, Key], MappingRow]) -> Merge:
    tool, other = task.tool(row.tool), answers.get((row.world, same))
    if same.tool != row.tool or tool is None:
        return Merge(row, "not calls of one tool")
    name = differing(tool, orjson.loads(row.arguments), orjson.loads(same.arguments))
    if name is not None:
        return Merge(row, f"{name} differs")
    if other is not None and (other.content, other.ok) != (row.content, row.ok):
        return Merge(row, "the other call has another answer")
    return Merge(row, "")


def _writes(task: Task, rows: Iterable[MappingRow]) -> dict[str, int]:
    """The number of writes that lead to each world state that entries are about."""
    there: dict[str, int] = {row.world: 0 for row in rows}
    following: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        tool = task.tool(row.tool)
        if row.ok and tool is not None and tool.writes:
            following[row.world].append(hash_after(row.world, key_of_row(row)))
    reached, waiting = {"": 0}, [""]
    while waiting:
        state = waiting.pop()
        for after in following[state]:
            reached[after] = reached[state] + 1
            waiting.append(after)
    return {state: reached[state] for state in there if state in reached}


def _pairs(task: Task, rows: Iterable[MappingRow], apart: Apart) -> Iterator[CallPair]:
    """Calls that differ in their words alone, and in their answers; not those that people have told apart."""
    alike: dict[tuple[str, str, bytes], dict[Key, MappingRow]] = defaultdict(dict)
    for row in rows:
        tool = task.tool(row.tool)
        # An equivalent call says what its entry says; where the state decides, words are names of different things.
        if row.same_as is None and tool is not None and _open(tool):
            kind = kind_of_call(tool, orjson.loads(row.arguments))
            alike[row.world, row.tool, kind][key_of_row(row)] = row
    for calls in alike.values():
        for (key, one), (other_key, other) in combinations(calls.items(), 2):
            told_apart = other_key in apart.get(key, ()) or one.source == other.source == "seeded"
            if (one.content, one.ok) != (other.content, other.ok) and not told_apart:
                yield CallPair(likeness(orjson.loads(one.arguments), orjson.loads(other.arguments)), one, other)


def _open(tool: Tool) -> bool:
    return tool.effect is None or tool.effect.get("write") is True
