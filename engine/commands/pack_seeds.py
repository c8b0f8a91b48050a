"""`synth-engine pack seeds`: what files of seeds hold, before a teacher is asked about it."""

from __future__ import annotations

from pathlib import Path

import click
import orjson
from rich.table import Table
from rich.text import Text

from engine.report.console import wide_console
from engine.synthesis.seeds.reading import read_seeds
from engine.synthesis.seeds.seed import Seed, SeedFile, SeedKind, one_line

_EXAMPLES = """\b
synth-engine pack seeds personas                            the personas that are shipped
synth-engine pack seeds people.txt                          one person a line
synth-engine pack seeds api.yaml --policy rules.txt          your own API: OpenAPI 3, OpenAI functions or an MCP reply
synth-engine pack seeds seeds/ --json                       every file of a directory, with the tools as a pack has them
"""
_SHOWN = 10


@click.command(name="seeds", short_help="Say what files of seeds hold.", epilog=_EXAMPLES)
@click.argument("sources", metavar="FILE...", nargs=-1, required=True, type=Path)
@click.option(
    "--policy", metavar="FILE", type=Path, help="Text or Markdown: the rules of the domain whose tools are given."
)
@click.option("--json", "as_json", is_flag=True, help="Everything, as JSON.")
def command(sources: tuple[Path, ...], policy: Path | None, *, as_json: bool) -> None:
    """Say what FILE... hold as seeds of synthesis, each recognised by its content (docs/seeds.md).

    A FILE is personas, tools as OpenAI functions, an MCP `tools/list` reply or an OpenAPI 3 document, or a directory of
    those; `personas` is what is shipped. Lists every seed, what was rewritten, and what cannot be used and why.
    """
    found = read_seeds(sources, policy)
    if as_json:
        click.echo(orjson.dumps({"files": [file.json() for file in found]}, option=orjson.OPT_INDENT_2))
        return
    for file in found:
        _print(file)


def _print(file: SeedFile) -> None:
    console = wide_console()
    trades = {seed.trade for seed in file.seeds if seed.trade}
    counts = [_counted(len(file.seeds), "seed"), *([_counted(len(trades), "trade")] if trades else [])]
    console.print(_line(f"{file.path}: {file.form}: {', '.join(counts)}"), style="green", soft_wrap=True)
    table = Table(show_edge=False, pad_edge=False, box=None)
    shown = [tuple(map(_line, (seed.id, seed.kind, seed.trade, _content(seed)))) for seed in file.seeds[:_SHOWN]]
    for number, column in enumerate(("id", "kind", "trade")):
        table.add_column(column, no_wrap=True, min_width=max((len(row[number]) for row in shown), default=0))
    table.add_column("", no_wrap=all(seed.persona for seed in file.seeds), overflow="ellipsis")
    for row in shown:
        table.add_row(*row)
    console.print(table)
    if more := file.seeds[_SHOWN:]:
        console.print(f"… and {len(more)} more (--json has all)")
    for kept, title in ((True, "rewritten"), (False, "left out")):
        for note in (note for note in file.notes if note.kept is kept):
            times = f" ({note.count} times)" if note.count > 1 else ""
            console.print(
                _line(f"{title}: {note.field}: {note.became}{times}"), style="" if kept else "yellow", soft_wrap=True
            )


def _content(seed: Seed) -> str:
    if seed.kind is SeedKind.PERSONA:
        return seed.persona
    tools = ", ".join(tool.name for tool in seed.tools)
    return f"{_counted(len(seed.tools), 'tool')}: {tools}" + (" (with a policy)" if seed.policy else "")


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _line(text: str) -> Text:
    return Text(one_line(text))
