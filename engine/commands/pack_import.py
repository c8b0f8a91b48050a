"""`synth-engine pack import`: tasks of another project's format as a pack, with a report of what was representable."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import orjson
from rich.table import Table

from engine.importing.format import ImportFormat, ImportOptions
from engine.importing.formats import FORMATS
from engine.importing.load import ImportRefusedError, import_file
from engine.importing.report import Report
from engine.packs.pack import PackHeader, write_pack
from engine.report.console import wide_console
from engine.task import Split

_EXAMPLES = """\b
synth-engine pack import {name} tasks.json                        the report alone
synth-engine pack import {name} tasks.json --output tasks.jsonl   and the pack
"""
_HELP = """Import FILE, {file} in the format of {title}.

{rules} Prints what was and was not representable, per field.

With anything wrong in FILE nothing is written: every problem is listed with task, field, reason and remedy, and the
exit code is 1.
"""
_SHOWN = 3


@click.group(name="import")
def command() -> None:
    """Import tasks of another format as a pack."""


def command_of(name: str, of: ImportFormat) -> click.Command:
    """Returns the command that imports one format."""
    said = _HELP.format(file=of.file, title=of.title, rules=of.rules)

    @click.command(
        name, short_help=f"Import tasks in the format of {of.title}.", help=said, epilog=_EXAMPLES.format(name=name)
    )
    @click.argument("file", type=Path)
    @click.option(
        "--output", metavar="PACK", type=Path, help="Write the pack here (.jsonl or .jsonl.zst); without: report only."
    )
    @click.option(
        "--split", type=click.Choice([str(split) for split in Split]), default=str(Split.TRAIN), show_default=True,
        help="The split that the tasks belong to.",
    )  # fmt: skip
    @click.option("--no-judge", is_flag=True, help="Leave out rubric items that only a judge can decide.")
    @click.option("--report", "saved", metavar="JSON", type=Path, help="Write the report with all task ids here.")
    def of_format(**options: Any) -> None:
        _import(of, options)

    return of_format


for _name, _format in FORMATS.items():
    command.add_command(command_of(_name, _format))


def _import(of: ImportFormat, options: Mapping[str, Any]) -> None:
    output, saved = options["output"], options["saved"]
    name = "" if output is None else pack_name(output)
    wanted = ImportOptions(split=Split(options["split"]), judge=not options["no_judge"])
    try:
        made = import_file(of, options["file"], wanted)
    except ImportRefusedError as refused:
        for problem in refused.problems:
            click.secho(str(problem), fg="red")
        click.echo(f"{len(refused.problems)} problem{'s' * (len(refused.problems) != 1)}; nothing was imported")
        raise SystemExit(1) from refused
    _print(made.report)
    if saved is not None:
        saved.write_bytes(orjson.dumps(made.report.json(), option=orjson.OPT_INDENT_2))
        click.echo(f"{saved}: the report")
    if output is not None:
        description = f"Imported from the {of.title} task format by `synth-engine pack import`."
        write_pack(output, PackHeader(format=1, pack=name, description=description), made.tasks)
        click.echo(f"{output}: {len(made.tasks)} tasks; next: synth-engine pack check {output}")


def pack_name(output: Path) -> str:
    """The name of a pack that is written to a file.

    Raises UsageError for a file that is no pack by its ending."""
    if not output.name.endswith((".jsonl", ".jsonl.zst")):
        raise click.UsageError(f"--output {output}: a pack is a .jsonl or .jsonl.zst file")
    return output.name.removesuffix(".zst").removesuffix(".jsonl")


def _print(report: Report) -> None:
    """Two tables: what was kept, and what was not, with the first tasks that have it."""
    console = wide_console()
    for kept, title in ((True, "representable"), (False, "not representable")):
        table = Table(title=f"{report.tasks} tasks: {title}", title_justify="left")
        table.add_column("field", no_wrap=True)
        table.add_column("became" if kept else "why")
        table.add_column("count", justify="right")
        table.add_column("tasks", justify="right")
        if not kept:
            table.add_column("for example")
        for line in (line for line in report.lines if line.kept is kept):
            row = [line.field, line.became, str(line.count), str(len(line.tasks))]
            table.add_row(*row, *([] if kept else [_few(line.tasks)]))
        console.print(table, markup=False)


def _few(tasks: tuple[str, ...]) -> str:
    """The ends of the first ids: where ids of one format are long, they differ there."""
    shown = ", ".join(f"…{task[-8:]}" if len(task) > 12 else task for task in tasks[:_SHOWN])
    return f"{shown}, …" if len(tasks) > _SHOWN else shown
