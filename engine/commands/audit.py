"""`synth-engine audit`: the table of checks."""

from __future__ import annotations

import click
from rich.table import Table
from rich.text import Text

from engine.audit.check import RunRecords
from engine.audit.run import audit
from engine.report.console import wide_console
from engine.rundir.layout import find_run


@click.command()
@click.argument("run", required=False)
@click.option("--dir", "directory", metavar="DIR", default="runs", help="Where runs live.", show_default=True)
def command(run: str | None, directory: str) -> None:
    """Recompute every invariant of RUN (default: the latest) from what it recorded.

    Reads frames, steps, checkpoints, adapters, swaps and metrics; starts nothing and changes nothing. Exit code 1 if
    any promise was broken.
    """
    recorded = RunRecords.read(find_run(run, directory))
    findings = audit(recorded)
    console = wide_console()
    table = Table(title=f"audit of {recorded.manifest['run_id']}", title_justify="left")
    for column in ("", "promise", "checked", "violations"):
        table.add_column(column, overflow="fold", justify="right" if column == "violations" else "left")
    for finding in findings:
        mark = Text("ok", style="green") if finding.ok else Text("BROKEN", style="bold red")
        table.add_row(mark, Text(finding.promise), Text(finding.checked), str(finding.count))
    console.print(table)
    broken = [finding for finding in findings if not finding.ok]
    for finding in broken:
        for violation in finding.violations:
            console.print(f"{finding.name}: {violation}", style="red", markup=False, soft_wrap=True)
    raise SystemExit(1 if broken else 0)
