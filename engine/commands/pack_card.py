"""`synth-engine pack card`: one task of a pack for a person to judge: what is told to whom, gold played, every test."""

from __future__ import annotations

import anyio
import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from engine.errors import ConfigError
from engine.packs.pack import load_pack
from engine.preflight.manifest import pack_file
from engine.report.console import wide_console
from engine.report.words import print_task, print_transcript
from engine.schema.legible import printable
from engine.synthesis.admission.admit import TaskAdmission, admission_of
from engine.synthesis.admission.climbing import SEARCH_EPISODES
from engine.synthesis.admission.finding import AdmissionFinding
from engine.synthesis.admission.play import ScriptPlayer
from engine.synthesis.planted import script
from engine.task import Task
from engine.types import Episode

_STYLES = {"passed": "green", "failed": "red", "not applicable": "dim"}


@click.command(name="card", short_help="One task for a person to judge: gold played, and every test.")
@click.argument("file")
@click.argument("task")
@click.option(
    "--search", "episodes", metavar="N", type=click.IntRange(0), default=SEARCH_EPISODES, show_default=True,
    help="Episodes of the adversary.",
)  # fmt: skip
def command(file: str, task: str, episodes: int) -> None:
    """Show TASK of FILE: what agent and user are told, the gold script played offline, what every test says.

    A test that fails is shown with a script of what the agent says in it. Exit code 1 if the task is not admitted.
    """
    path = pack_file(file)
    found = next((one for one in load_pack(path).tasks if one.id == task), None)
    if found is None:
        raise ConfigError(f"{path}: it has no task {task!r}; `synth-engine pack check --admit {file} --json` names all")
    console, episode = wide_console(), anyio.run(_gold, found)
    print_task(console, found, played=episode is not None)
    if episode is not None:
        console.print("\n[bold]The gold script[/]")
        print_transcript(console, episode, found)
    admission = anyio.run(admission_of, found, episodes)
    _print(console, admission)
    raise SystemExit(0 if admission.admitted else 1)


async def _gold(task: Task) -> Episode | None:
    """The gold script played; None for a task without one that fits."""
    try:
        gold = script(task).gold
    except ConfigError:
        return None
    return await ScriptPlayer(task).play(gold)


def _print(console: Console, admission: TaskAdmission) -> None:
    table = Table(title="Admission", title_justify="left")
    for column in ("test", "", "what was seen"):
        table.add_column(column, overflow="fold")
    for finding in admission.findings:
        table.add_row(finding.test, Text(finding.result, style=_STYLES[finding.result]), Text(_seen(finding)))
    console.print()
    console.print(table)
    for finding in admission.findings:
        for flaw in finding.flaws:
            if flaw.script:
                console.print(f"\n[bold]{finding.test}: {flaw.code}[/]: what the agent says")
                for completion in flaw.script:
                    console.print(printable(f"  {completion}"), markup=False, soft_wrap=True)


def _seen(finding: AdmissionFinding) -> str:
    return printable("\n".join(f"{flaw.code}: {flaw.evidence}" for flaw in finding.flaws) or finding.why)
