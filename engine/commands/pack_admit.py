"""What `synth-engine pack check` plays: each task once, or with --admit every test of admission."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio
import click
import orjson
from rich.console import Console
from rich.table import Table
from rich.text import Text

from engine.packs.problems import Problem
from engine.report.console import wide_console
from engine.report.counting import Counted, counting
from engine.schema.legible import printable
from engine.synthesis.admission.admit import TESTS, TaskAdmission, admission_of
from engine.synthesis.admission.climbing import SEARCH_EPISODES
from engine.synthesis.admission.finding import AdmissionFlaw
from engine.synthesis.admission.trial import trial
from engine.task import Task

_SHOWN = 12
"""Flaws that are told with their evidence."""
_NAMED = 3
"""Tasks that are named for each code."""


def options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options of admission to `pack check`."""
    for option in (
        click.option("--json", is_flag=True, help="With --admit: one JSON object a task instead of the tables."),
        click.option(
            "--search", metavar="N", type=click.IntRange(0),
            help=f"With --admit: episodes of the adversary.  [default: {SEARCH_EPISODES}]",
        ),
        click.option("--admit", is_flag=True, help="Put every task to the tests of admission."),
    ):  # fmt: skip
        command = option(command)
    return command


def require_admit(given: Mapping[str, Any]) -> None:
    """Raises UsageError for options that have no effect without --admit."""
    if not given["admit"] and (given["json"] or given["search"] is not None):
        raise click.UsageError("--json and --search need --admit")


def trial_problems(path: Path, tasks: Sequence[Task]) -> list[Problem]:
    """What is wrong with the tasks of a pack that shows when they are played."""
    with counting(Console(stderr=True), "playing", "tasks") as progress:
        return anyio.run(_tried, path, tasks, progress)


async def _tried(path: Path, tasks: Sequence[Task], progress: Counted) -> list[Problem]:
    problems = []
    for done, task in enumerate(tasks, 1):
        async for field, reason, remedy in trial(task):
            problems.append(Problem(path=str(path), line=0, task=task.id, field=field, reason=reason, remedy=remedy))
        progress(done, len(tasks))
    return problems


def admit_pack(path: Path, tasks: Sequence[Task], given: Mapping[str, Any]) -> None:
    """Put every task to every test, and print what they found; ends with exit code 1 if a task is not admitted."""
    episodes = SEARCH_EPISODES if given["search"] is None else given["search"]
    as_json = given["json"]
    with counting(Console(stderr=True), "admitting", "tasks") as progress:
        admissions = anyio.run(_admitted, tasks, episodes, as_json, progress)
    if not as_json:
        _print(wide_console(), path, admissions)
    raise SystemExit(0 if all(admission.admitted for admission in admissions) else 1)


async def _admitted(tasks: Sequence[Task], episodes: int, as_json: bool, progress: Counted) -> list[TaskAdmission]:  # noqa: FBT001 - anyio passes no keywords
    admissions = []
    for done, task in enumerate(tasks, 1):
        admissions.append(await admission_of(task, episodes))
        if as_json:
            click.echo(orjson.dumps(admissions[-1].json()))
        progress(done, len(tasks))
    return admissions


# --- what they found ------------------------------------------------------------------------------------------------


def _print(console: Console, path: Path, admissions: Sequence[TaskAdmission]) -> None:
    console.print(_results(admissions))
    found = _by_code(admissions)
    if found:
        console.print(_codes(found))
    shown = [(task, code, flaw) for code, flaws in found.items() for task, flaw in flaws[:1]][:_SHOWN]
    for task, code, flaw in shown:
        console.print(printable(f"{task}: {code}: {flaw.evidence}"), style="red", markup=False, soft_wrap=True)
    admitted = sum(admission.admitted for admission in admissions)
    style = "green" if admitted == len(admissions) else "red"
    told = f"{path}: {admitted:,} of {len(admissions):,} tasks admitted"
    console.print(told, style=style, markup=False, soft_wrap=True)
    if shown:
        card = f"synth-engine pack card {path} {shown[0][0]}"
        console.print(printable(f"One task, with what happens in it:  {card}"), markup=False, soft_wrap=True)


def _results(admissions: Sequence[TaskAdmission]) -> Table:
    table = Table()
    table.add_column("test")
    for result in ("passed", "failed", "not applicable"):
        table.add_column(result, justify="right")
    counts = Counter((finding.test, finding.result) for admission in admissions for finding in admission.findings)
    for name in TESTS:
        row = (counts[name, "passed"], counts[name, "failed"], counts[name, "not applicable"])
        table.add_row(name, *(f"{count:,}" if count else "" for count in row), style="red" if row[1] else None)
    return table


def _by_code(admissions: Sequence[TaskAdmission]) -> dict[str, list[tuple[str, AdmissionFlaw]]]:
    """The flaws of each code with their tasks; codes in the order of the tests."""
    found: dict[str, list[tuple[str, AdmissionFlaw]]] = defaultdict(list)
    for name in TESTS:
        for admission in admissions:
            for finding in admission.findings:
                for flaw in finding.flaws if finding.test == name else ():
                    found[flaw.code].append((admission.task_id, flaw))
    return found


def _codes(found: dict[str, list[tuple[str, AdmissionFlaw]]]) -> Table:
    table = Table()
    for column in ("code", "tasks", "for example"):
        table.add_column(column, justify="right" if column == "tasks" else "left")
    for code, flaws in found.items():
        tasks = ", ".join(task for task, _ in flaws[:_NAMED])
        table.add_row(code, f"{len(flaws):,}", Text(printable(tasks + (", …" if len(flaws) > _NAMED else ""))))
    return table
