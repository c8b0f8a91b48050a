"""`synth-engine world audit`: how answers were found, every semantic merge, and what contradicts what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import nlargest

import anyio
import click
import orjson
from anyio import to_thread
from rich.console import Console
from rich.table import Table
from rich.text import Text

from engine.config.load import load
from engine.config.tree import Config
from engine.errors import ConfigError
from engine.packs.pack import load_pack
from engine.report.console import wide_console
from engine.rundir.layout import RunDir, find_run
from engine.task import Task
from engine.world.review import MOST_PAIRS, CallPair, Merge, Reviewed, review
from engine.world.store import MappingRow, Origin, Veto, read_store
from engine.world.vetoes import Vetoes, merge_id, task_of

_TASKS_SHOWN = 40
_LONGEST = 240
"""Characters of a call or an answer in a table."""
_FOUND: dict[Origin, str] = {
    "seeded": "fixed by the task",
    "simulated": "made, or decided by the state",
    "equivalent": "taken from a call that means the same",
    "imported": "there when the run began (world.mapping)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _World:
    """What world.sqlite holds."""

    tasks: Sequence[Reviewed]
    vetoes: Sequence[Veto]
    withdrawn: Counter[int]
    """Entries by the number of their veto."""


@click.command("audit", short_help="How answers were found, every semantic merge, and contradictions.")
@click.argument("run", required=False)
@click.option("--dir", "directory", metavar="DIR", default="runs", show_default=True, help="Where runs live.")
def command(run: str | None, directory: str) -> None:
    """How the answers of RUN (default: the latest) were found, every semantic merge, and what contradicts what.

    A merge is a simulator's verdict that two calls mean the same; `synth-engine world veto` withdraws one. Exit code 1
    if calls were merged that differ in a number, a code or a choice.
    """
    found, console = find_run(run, directory), wide_console()
    world = anyio.run(_read, found, load(found.config).config)
    entries = sum((task.found for task in world.tasks), Counter[Origin]())
    states = sum(len(task.writes) for task in world.tasks)
    told = f"{found.run_id}: {entries.total():,} entries of {len(world.tasks):,} worlds in {states:,} states"
    console.print(told, markup=False, soft_wrap=True)
    console.print("Calls that were answered before are read from memory and leave no row: rows only are counted here.")
    console.print(_found_table(entries))
    console.print(_task_table(world.tasks))
    if len(world.tasks) > _TASKS_SHOWN:
        console.print(f"and {len(world.tasks) - _TASKS_SHOWN:,} more")
    wrong = _print_merges(console, world)
    _print_pairs(console, world.tasks)
    raise SystemExit(1 if wrong else 0)


async def _read(run: RunDir, config: Config) -> _World:
    """Everything, task by task.

    Raises ConfigError without a database, or with entries of a task that the run's pack does not have."""
    pack = await to_thread.run_sync(load_pack, run.pack)
    tasks, private, found = {task.id: task for task in pack.tasks}, config.world.mode == "private", []
    async with read_store(run.world) as store:
        vetoes = Vetoes.of(store)
        for name in sorted(store.tasks):
            task = _task(run, tasks, task_of(name, private=private))
            gone = [row for _, row in store.withdrawn if row.task == name]
            found.append(review(task, await store.load(name), gone, vetoes.others(task.id)))
        return _World(
            tasks=found, vetoes=list(store.vetoes), withdrawn=Counter(number for number, _ in store.withdrawn)
        )


def _task(run: RunDir, tasks: dict[str, Task], name: str) -> Task:
    if name not in tasks:
        raise ConfigError(f"{run.world}: it has entries of {name!r}, which {run.pack} does not have; restore that file")
    return tasks[name]


def _found_table(entries: Counter[Origin]) -> Table:
    table = Table()
    for column in ("found", "", "entries", "share"):
        table.add_column(column, justify="right" if column in ("entries", "share") else "left")
    for source, meaning in _FOUND.items():
        table.add_row(source, meaning, f"{entries[source]:,}", f"{entries[source] / max(1, entries.total()):.1%}")
    return table


def _task_table(tasks: Iterable[Reviewed]) -> Table:
    table = Table()
    for column in ("world", "states", "entries", *_FOUND, "to compare"):
        table.add_column(column, justify="left" if column == "world" else "right", overflow="fold")
    order = sorted(tasks, key=lambda task: (-task.found["equivalent"], -task.found.total(), task.name))
    for task in order[:_TASKS_SHOWN]:
        numbers = (len(task.writes), task.found.total(), *(task.found[source] for source in _FOUND), task.all_pairs)
        table.add_row(Text(task.name), *(f"{number:,}" for number in numbers))
    return table


def _print_merges(console: Console, world: _World) -> bool:
    """Every merge, and every veto; returns whether a merge is wrong whatever the words mean."""
    merges = [(task, merge) for task in world.tasks for merge in task.merges]
    wrong = [merge for _, merge in merges if merge.flaw]
    if merges:
        table = Table(title=f"{len(merges):,} semantic merges", title_justify="left")
        for column in ("merge", "world", "state", "tool", "called with", "taken for", "answer"):
            table.add_column(column, overflow="fold")
        for task, merge in merges:
            table.add_row(*_merge_row(task, merge))
        console.print(table)
    else:
        console.print("No semantic merge.")
    for merge in wrong:
        console.print(f"{merge_id(merge.row)}: {merge.flaw}", style="red", markup=False, soft_wrap=True)
    for veto in world.vetoes:
        told = f"veto {veto.number}: {veto.task}: {veto.tool} {veto.one} is not {veto.other}"
        gone = f"{world.withdrawn[veto.number]} answers withdrawn after {veto.training + veto.evaluation:,} groups"
        console.print(f"{told}; {gone}", markup=False, soft_wrap=True)
    return bool(wrong)


def _merge_row(task: Reviewed, merge: Merge) -> list[Text]:
    row = merge.row
    same = orjson.loads(row.same_as or "null")[1]
    cells = (merge_id(row), row.task, _state(task, row), row.tool, row.arguments, same, row.content)
    return [Text(_short(cell)) for cell in cells]


def _print_pairs(console: Console, tasks: Sequence[Reviewed]) -> None:
    total = sum(task.all_pairs for task in tasks)
    if not total:
        return
    every: list[tuple[Reviewed, CallPair]] = [(task, pair) for task in tasks for pair in task.pairs]
    shown = nlargest(MOST_PAIRS, every, key=lambda found: found[1].likeness)
    title = f"{total:,} pairs of calls that differ in words alone, with different answers: do they mean the same?"
    table = Table(title=title, title_justify="left")
    for column in ("alike", "world", "state", "tool", "called with", "answer"):
        table.add_column(column, overflow="fold")
    for task, pair in shown:
        one, other = pair.one, pair.other
        first = (f"{pair.likeness:.0%}", one.task, _state(task, one), one.tool, one.arguments, one.content)
        table.add_row(*(Text(_short(cell)) for cell in first))
        table.add_row("", "", "", "", Text(_short(other.arguments)), Text(_short(other.content)), end_section=True)
    console.print(table)
    if total > len(shown):
        console.print(f"and {total - len(shown):,} that have fewer words in common")


def _state(task: Reviewed, row: MappingRow) -> str:
    """The world state of an entry: the writes before it, and the beginning of its hash."""
    if not row.world:
        return "start"
    writes = task.writes.get(row.world)
    many = "? writes" if writes is None else f"{writes} write{'s' * (writes != 1)}"
    return f"{row.world[:8]}, {many}"


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
