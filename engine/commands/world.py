"""`synth-engine world`: the mapping of a run, for people: audit (engine.commands.world_audit), diff, veto, export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import anyio
import click
from rich.console import Console

from engine.commands import world_audit
from engine.commands.export import check_place
from engine.config.load import load
from engine.errors import ConfigError
from engine.packs.exported import exported
from engine.report.console import wide_console
from engine.rundir.layout import RunDir, find_run
from engine.stream.reader import read_group_ids
from engine.world.store import EntryStore, MappingRow, open_store, read_store
from engine.world.vetoes import RecordedGroups, veto

_BASE = click.option("--dir", "directory", metavar="DIR", default="runs", show_default=True, help="Where runs live.")


@click.group()
def command() -> None:
    """How tool calls were answered: audit a run's answers, compare, export, veto a merge."""


command.add_command(world_audit.command)


# --- diff -----------------------------------------------------------------------------------------------------------


class _Difference(NamedTuple):
    """An entry of which the other run has none, or another answer."""

    one: MappingRow | None
    other: MappingRow | None


@command.command(short_help="Answers that only one of two runs has, or that differ.")
@click.argument("run")
@click.argument("other")
@_BASE
def diff(run: str, other: str, directory: str) -> None:
    """Entries that only RUN (<) or only OTHER (>) has, and those whose answers differ, task by task.

    Exit code 1 if there are any.
    """
    one, two = find_run(run, directory), find_run(other, directory)
    same, found = anyio.run(_compare, one, two)
    console = wide_console()
    for task, differences in found.items():
        _say(console, task)
        for difference in differences:
            _print_difference(console, difference)
    only = sum(row.other is None for rows in found.values() for row in rows)
    missing = sum(row.one is None for rows in found.values() for row in rows)
    differ = sum(map(len, found.values())) - only - missing
    _say(
        console, f"{same:,} entries the same, {differ:,} differ; only in {run}: {only:,}, only in {other}: {missing:,}"
    )
    raise SystemExit(1 if found else 0)


async def _compare(run: RunDir, other: RunDir) -> tuple[int, Mapping[str, Sequence[_Difference]]]:
    """How many entries are the same, and what is not, by task."""
    same, found = 0, {}
    async with read_store(run.world) as left, read_store(other.world) as right:
        for task in sorted(left.tasks | right.tasks):
            mine, theirs = await _entries(left, task), await _entries(right, task)
            pairs = [_Difference(mine.get(key), theirs.get(key)) for key in sorted(mine.keys() | theirs.keys())]
            different = [pair for pair in pairs if _answer(pair.one) != _answer(pair.other)]
            same += len(pairs) - len(different)
            if different:
                found[task] = different
    return same, found


async def _entries(store: EntryStore, task: str) -> dict[tuple[str, str, str], MappingRow]:
    return {(row.world, row.tool, row.arguments): row for row in await store.load(task)}


def _answer(row: MappingRow | None) -> tuple[str, int] | None:
    return None if row is None else (row.content, row.ok)


def _print_difference(console: Console, difference: _Difference) -> None:
    row = difference.one or difference.other
    assert row is not None
    _say(console, f"  {row.world[:8] or 'start':<8}  {row.tool} {row.arguments}")
    for mark, said in (("<", difference.one), (">", difference.other)):
        if said is not None:
            _say(console, f"    {mark} {'' if said.ok else 'refused: '}{said.content}")


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, soft_wrap=True)


# --- veto -----------------------------------------------------------------------------------------------------------


@command.command("veto", short_help="Two calls that were merged do not mean the same: withdraw the answer.")
@click.argument("names", metavar="[RUN] MERGE", nargs=-1, required=True)
@_BASE
def veto_merge(names: tuple[str, ...], directory: str) -> None:
    """Withdraw MERGE, an id that `synth-engine world audit` prints, from RUN (default: the latest).

    When the run goes on, the call is asked again, and the two are never merged again in any state of the task; whatever
    had the withdrawn answer from there is withdrawn too. Recorded episodes stay as they are. A run that is being worked
    on is refused.
    """
    if len(names) > 2:
        raise click.UsageError("one merge at a time: [RUN] MERGE")
    run = find_run(names[0] if len(names) > 1 else None, directory)
    if not run.world.exists():
        raise ConfigError(f"{run.path}: it has no answers in a world.sqlite; a world of one's own keeps them itself")
    with run.locked():
        private = load(run.config).config.world.mode == "private"
        recorded = RecordedGroups(len(read_group_ids(run.trajectories)), len(read_group_ids(run.eval)))
        withdrawn = anyio.run(_veto, run, names[-1], recorded, private)
    console = wide_console()
    for row in withdrawn:
        _say(console, f"withdrawn: {row.task}: {row.world[:8] or 'start'}: {row.tool} {row.arguments}")


async def _veto(run: RunDir, merge: str, recorded: RecordedGroups, private: bool) -> list[MappingRow]:  # noqa: FBT001 - anyio.run
    async with open_store(run.world) as store:
        return await veto(store, merge, recorded, private=private)


# --- export ---------------------------------------------------------------------------------------------------------


@command.command(short_help="The answers as JSON lines, for world.mapping.")
@click.argument("run", required=False)
@click.option("--out", metavar="FILE", type=Path, help="Where to; without it to standard output.")
@_BASE
def export(run: str | None, out: Path | None, directory: str) -> None:
    """The answers of RUN (default: the latest) as JSON lines, sorted by task, world state, tool and arguments.

    A run starts from them with `world.mapping = FILE`; with `world.mode = "frozen"` it has no others.
    """
    if out is not None:
        check_place(out)
    lines = anyio.run(_lines, find_run(run, directory))
    if out is None:
        click.echo(lines, nl=False)
    else:
        out.write_bytes(lines)


async def _lines(run: RunDir) -> bytes:
    async with read_store(run.world) as store:
        return b"".join([exported(row) for task in sorted(store.tasks) for row in await store.load(task)])
