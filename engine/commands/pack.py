"""`synth-engine pack`: check a pack, print the JSON Schema of its lines; beside it `card`, `import` and `seeds`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import click
import orjson

from engine.commands import pack_admit, pack_card, pack_import, pack_seeds
from engine.packs.line_schema import header_schema, task_schema
from engine.packs.pack import Pack, check_pack
from engine.preflight.judged import judged_items
from engine.preflight.manifest import pack_file
from engine.report.console import wide_console
from engine.reward.rubric import rubric_items

_SCHEMA_EXAMPLES = """\b
synth-engine pack schema > task.schema.json    and name it in the editor; in VS Code's settings.json:
  "json.schemas": [{"fileMatch": ["*.task.json"], "url": "./task.schema.json"}]
jq -c . shop.task.json >> shop.jsonl           a task that was written over many lines, as the line of a pack
synth-engine pack check shop.jsonl
"""


@click.group()
def command() -> None:
    """Check a task pack, print the schema of its lines, import one from another format, or look at seeds."""


command.add_command(pack_card.command)
command.add_command(pack_import.command)
command.add_command(pack_seeds.command)


@command.command(short_help="Validate a task pack and say what is in it.")
@click.argument("file")
@pack_admit.options
def check(file: str, **admission: Any) -> None:
    """Validate FILE (a .jsonl or .jsonl.zst, or a shipped name: tiny, errands, showcase).

    Lists everything that is wrong, with line, task, field, reason and remedy: problems, with which no run takes the
    pack, and flaws, with which a run rewards other than is meant. Exit code 1 if there are any. What is sound is
    played offline: nobody earns 1 by doing nothing, and each gold script earns 1. With --admit every task is put to
    the tests of admission (docs/packs.md#admission), and is to pass them all.
    """
    pack_admit.require_admit(admission)
    path = pack_file(file)
    checked = check_pack(path)
    if checked.pack is not None and admission["admit"]:
        pack_admit.admit_pack(path, checked.pack.tasks, admission)
    played = [] if checked.pack is None else pack_admit.trial_problems(path, checked.pack.tasks)
    found = {"problem": (checked.problems, "red"), "flaw": ([*checked.flaws, *played], "yellow")}
    for several, colour in found.values():
        for one in several:
            click.secho(str(one), fg=colour)
    counts = [f"{len(several)} {what}{'s' * (len(several) > 1)}" for what, (several, _) in found.items() if several]
    if checked.pack is None:
        click.echo(", ".join(counts))
        raise SystemExit(1)
    _describe(path, checked.pack, ", ".join(counts))
    raise SystemExit(1 if counts else 0)


def _describe(path: Path, pack: Pack, flaws: str) -> None:
    """What is in a pack that a run takes."""
    splits = Counter(str(task.split) for task in pack.tasks)
    kinds = Counter(str(task.kind) for task in pack.tasks)
    items = [item for task in pack.tasks for item, _ in rubric_items(task.rubric)]
    console = wide_console()
    verdict, style = (f"{flaws}; a run takes it as it is", "yellow") if flaws else ("sound", "green")
    console.print(f"{path}: {verdict}", style=style, markup=False, soft_wrap=True)
    console.print(f"  {pack.header.pack}: {pack.header.description}", markup=False, soft_wrap=True)
    checks = sum(item.check is not None for item in items)
    console.print(f"  {len(pack.tasks)} tasks ({_counted(splits)}; {_counted(kinds)}), {checks} executable checks")
    if judged := judged_items(pack.tasks):
        console.print(f"  {judged}: the judge of scorer.judge decides", markup=False, soft_wrap=True)
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
