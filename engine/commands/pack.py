"""`synth-engine pack`: check a pack, print the JSON Schema of its lines, import one (engine.commands.pack_import)."""

from __future__ import annotations

from collections import Counter

import click
import orjson

from engine.commands import pack_import
from engine.packs.line_schema import header_schema, task_schema
from engine.packs.pack import load_pack, pack_problems
from engine.preflight.manifest import pack_file
from engine.report.console import wide_console

_SCHEMA_EXAMPLES = """\b
synth-engine pack schema > task.schema.json    and name it in the editor; in VS Code's settings.json:
  "json.schemas": [{"fileMatch": ["*.task.json"], "url": "./task.schema.json"}]
jq -c . shop.task.json >> shop.jsonl           a task that was written over many lines, as the line of a pack
synth-engine pack check shop.jsonl
"""


@click.group()
def command() -> None:
    """Check a task pack, print the schema of its lines, or import one from another format."""


command.add_command(pack_import.command)


@command.command(short_help="Validate a task pack and say what is in it.")
@click.argument("file")
def check(file: str) -> None:
    """Validate FILE (a .jsonl or .jsonl.zst, or a shipped name: tiny, errands, showcase).

    Lists everything that is wrong, with line, task, field, reason and remedy; exit code 1 if anything is.
    """
    path = pack_file(file)
    problems = pack_problems(path)
    for problem in problems:
        click.secho(str(problem), fg="red")
    if problems:
        click.echo(f"{len(problems)} problem{'s' * (len(problems) != 1)}")
        raise SystemExit(1)
    pack = load_pack(path)
    splits = Counter(str(task.split) for task in pack.tasks)
    kinds = Counter(str(task.kind) for task in pack.tasks)
    checks = sum(
        item.check is not None
        for task in pack.tasks
        for item in (*task.rubric.forbidden, *task.rubric.subgoals, *task.rubric.interactions)
    )
    console = wide_console()
    console.print(f"{path}: sound", style="green", markup=False, soft_wrap=True)
    console.print(f"  {pack.header.pack}: {pack.header.description}", markup=False, soft_wrap=True)
    console.print(f"  {len(pack.tasks)} tasks ({_counted(splits)}; {_counted(kinds)}), {checks} executable checks")
    console.print(f"  sha256 {pack.sha256}")


@command.command(short_help="The JSON Schema of a pack's lines, for editors.", epilog=_SCHEMA_EXAMPLES)
@click.option("--header", is_flag=True, help="That of the first line, instead of a task's.")
def schema(*, header: bool) -> None:
    """Print the JSON Schema (draft 2020-12) of a task: every field, effect and check, with what it means.

    An editor that has it completes and checks a task while it is written; `pack check` refuses more.
    """
    made = header_schema() if header else task_schema()
    click.echo(orjson.dumps(made, option=orjson.OPT_INDENT_2))


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.most_common())
