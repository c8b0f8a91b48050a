"""`synth-engine synthesize`: tasks made of drafts, each executed before it is one."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import anyio
import click
import orjson
from rich.text import Text

from engine.commands.pack_import import pack_name
from engine.packs.pack import PACK_FORMAT, PackHeader, write_pack
from engine.report.console import wide_console
from engine.schema.legible import printable
from engine.synthesis.drafts.compiler import compile_draft
from engine.synthesis.drafts.draft import Draft, read_drafts
from engine.synthesis.drafts.plan import DraftError
from engine.task import Task

_EXAMPLES = """\b
synth-engine synthesize --from-drafts draft.json -o shop.jsonl    one draft, an array of them, or one a line
synth-engine pack check --admit shop.jsonl                        every test of admission on what came of it
synth-engine run --config dry --set tasks.pack=shop.jsonl         and a run of it
"""


class _Rejected(NamedTuple):
    """A draft that became no task."""

    draft: str
    code: str
    why: str


@click.command(short_help="Make tasks of drafts, each proved by execution.", epilog=_EXAMPLES)
@click.option("--from-drafts", "drafts", metavar="FILE", type=Path, required=True, help="Drafts (docs/drafts.md).")
@click.option(
    "-o", "--output", metavar="PACK", type=Path, required=True, help="Write the pack here (.jsonl or .jsonl.zst)."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object: the tasks' ids, and what was rejected.")
def command(drafts: Path, output: Path, *, as_json: bool) -> None:
    """Compile drafts into a pack: rubric, script and planted mistakes follow from each draft's plan.

    No model is asked. A draft that no task can be made of is told with its place, the reason and a remedy; the others
    are written, and the exit code is 1.
    """
    name = pack_name(output)
    tasks, rejected = anyio.run(_compiled, read_drafts(drafts))
    if tasks:
        header = PackHeader(format=PACK_FORMAT, pack=name, description=f"Compiled of the drafts in {drafts.name}.")
        write_pack(output, header, tasks)
    if as_json:
        told = {"tasks": [task.id for task in tasks], "rejected": [one._asdict() for one in rejected]}
        click.echo(orjson.dumps(told, option=orjson.OPT_INDENT_2))
    else:
        _tell(output, tasks, rejected)
    raise SystemExit(1 if rejected else 0)


async def _compiled(drafts: list[Draft]) -> tuple[list[Task], list[_Rejected]]:
    tasks, rejected = [], []
    for draft in drafts:
        try:
            tasks.append(await compile_draft(draft))
        except DraftError as error:
            rejected.append(_Rejected(draft.id, error.code, str(error)))
    return tasks, rejected


def _tell(output: Path, tasks: list[Task], rejected: list[_Rejected]) -> None:
    console = wide_console()
    for one in rejected:
        line = f"{one.draft}: {one.code}: {one.why}"
        console.print(Text(printable(line)), style="red", soft_wrap=True)
    many = f"{len(tasks)} of {len(tasks) + len(rejected)} drafts became tasks"
    if tasks:
        click.echo(f"{output}: {many}; next: synth-engine pack check --admit {output}")
    else:
        click.echo(f"{many}; nothing was written")
