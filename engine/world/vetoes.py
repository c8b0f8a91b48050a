"""A person's veto of a semantic merge: two calls that a simulator took for the same are different calls from now on.

The answers that came from the merge are withdrawn, so that the next caller asks again, and no state of the task merges
the two once more: whoever asks a model asks here first (engine.world.llm_tools). To ask about a call whose answer was
withdrawn is a new question, for the journal would answer the old one as before. Nothing that was recorded changes:
earlier episodes are what they were. The mapping knows nothing of all this: it is loaded without the withdrawn answers.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from hashlib import sha256
from typing import NamedTuple

from engine.errors import ConfigError
from engine.world.states import Key, WorldState, key_of_row, key_of_same
from engine.world.store import EntryStore, MappingRow, Veto

_ID_DIGITS = 10


class RecordedGroups(NamedTuple):
    """How many groups a run has recorded."""

    training: int
    evaluation: int


def merge_id(row: MappingRow) -> str:
    """A short name of a merge that stays the same: it depends on both calls, the task and the state."""
    parts = (row.task, row.world, row.tool, row.arguments, row.same_as or "")
    return sha256("\0".join(parts).encode()).hexdigest()[:_ID_DIGITS]


def task_of(name: str, *, private: bool) -> str:
    """The id of the task whose world has that name; `private`: every episode has one of its own."""
    return name.rpartition("#")[0] if private else name


class Vetoes:
    """What people said against merges, for whoever decides on the next one."""

    def __init__(self, vetoes: Iterable[Veto] = (), withdrawn: Iterable[tuple[int, MappingRow]] = ()) -> None:
        self._others: dict[str, dict[Key, set[Key]]] = defaultdict(lambda: defaultdict(set))
        for veto in vetoes:
            one, other = Key(veto.tool, veto.one.encode()), Key(veto.tool, veto.other.encode())
            self._others[veto.task][one].add(other)
            self._others[veto.task][other].add(one)
        self._withdrawn = Counter((row.task, row.world, key_of_row(row)) for _, row in withdrawn)

    @classmethod
    def of(cls, store: EntryStore | AnswersAsOf) -> Vetoes:
        """Those that a database has."""
        return cls(store.vetoes, store.withdrawn)

    def others(self, task: str) -> Mapping[Key, Collection[Key]]:
        """What calls of a task do not mean the same as, in whatever state."""
        return self._others.get(task, {})

    def apart(self, state: WorldState, key: Key) -> Collection[Key]:
        """Entries of a state that a call must not be merged with: those that it does not mean the same as, and what has
        their answers."""
        others = self.others(state.world.task.id).get(key)
        if others is None:
            return ()
        roots = {_root(state, other) for other in others}
        return [known for known in state.entries if _root(state, known) in roots]

    def withdrawn(self, state: WorldState, key: Key) -> int:
        """How often the answer to a call in a state was withdrawn."""
        return self._withdrawn[state.world.name, state.hash, key]


def _root(state: WorldState, key: Key) -> Key:
    """The call whose answer a call was given."""
    while (entry := state.entries.get(key)) is not None and entry.same_as is not None:
        key = entry.same_as
    return key


async def veto(store: EntryStore, merge: str, recorded: RecordedGroups, *, private: bool) -> list[MappingRow]:
    """Veto the merge whose id begins with `merge`; returns the entries that were withdrawn.

    `private` says that every episode of the run has a world of its own. Raises ConfigError if there is not exactly one
    such merge, RunError where the database cannot be written."""
    found = [row for task in sorted(store.tasks) for row in await store.load(task) if _is(row, merge)]
    if len(found) != 1:
        raise ConfigError(_not_one(merge, found, [row for _, row in store.withdrawn]))
    [row] = found
    same = key_of_same(row)
    assert same is not None
    made = Veto(
        number=len(store.vetoes) + 1,
        task=task_of(row.task, private=private),
        tool=row.tool,
        one=row.arguments,
        other=same.arguments.decode(),
        training=recorded.training,
        evaluation=recorded.evaluation,
    )
    rows = _concerned(await store.load(row.task), {key_of_row(row), same})
    await store.withdraw(made, rows)
    return rows


class AnswersAsOf:
    """The answers that a run began with as they were when a group was played, for playing it again; keeps nothing.

    `whole`: with whatever was answered meanwhile, instead of having it answered again."""

    pending = 0

    def __init__(self, store: EntryStore, place: RecordedGroups, *, whole: bool) -> None:
        self._store, self._whole = store, whole
        done = sum(veto.training <= place.training and veto.evaluation <= place.evaluation for veto in store.vetoes)
        self.vetoes = store.vetoes[:done]
        self.withdrawn = [(number, row) for number, row in store.withdrawn if number <= done]
        self._later = [row for number, row in store.withdrawn if number > done]

    async def load(self, task: str) -> list[MappingRow]:
        """The answers about a task, those included that were withdrawn later.

        Raises RunError where the database cannot be read."""
        rows = [*await self._store.load(task), *(row for row in self._later if row.task == task)]
        return [row for row in rows if self._whole or row.source == "imported"]

    def put(self, row: MappingRow) -> None:
        """Nothing is kept."""

    async def flush(self) -> None:
        """There is nothing to commit."""


def _is(row: MappingRow, merge: str) -> bool:
    return row.same_as is not None and merge_id(row).startswith(merge)


def _not_one(merge: str, found: Sequence[MappingRow], withdrawn: Iterable[MappingRow]) -> str:
    if found:
        return f"{merge} is the beginning of several merges: {', '.join(map(merge_id, found))}; write more of it"
    if any(_is(row, merge) for row in withdrawn):
        return f"{merge} was withdrawn already; `synth-engine world audit` lists the merges that there are"
    return f"there is no merge {merge}; `synth-engine world audit` lists them"


def _concerned(rows: Sequence[MappingRow], pair: set[Key]) -> list[MappingRow]:
    """Merges of the pair in any state, and what has its answer from one of them."""
    gone = {row[:4]: row for row in rows if {key_of_row(row), key_of_same(row)} == pair}
    while True:
        places = {(row.world, key_of_row(row)) for row in gone.values()}
        more = {row[:4]: row for row in rows if (row.world, key_of_same(row)) in places and row[:4] not in gone}
        if not more:
            return list(gone.values())
        gone |= more
