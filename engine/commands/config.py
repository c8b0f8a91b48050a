"""`synth-engine config show`: the resolved configuration, plain or explained."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from engine.config.load import Loaded, dump, fields, load, marks, value_of
from engine.report.console import wide_console

_EXAMPLES = """\b
synth-engine config show --explain           every key there is
synth-engine config show --config tiny > mine.toml
"""


@click.group()
def command() -> None:
    """Show the configuration: every key, its meaning and its source."""


@command.command(epilog=_EXAMPLES)
@click.option("--config", "file", metavar="FILE", help="A TOML file, or a shipped name: tiny, dry. Without: defaults.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key; repeatable.")
@click.option("--explain", is_flag=True, help="Every key with its meaning, default and source.")
def show(file: str | None, overrides: tuple[str, ...], explain: bool) -> None:  # noqa: FBT001 - click passes flags by name
    """Print the resolved configuration as TOML, ready to be a file of your own."""
    loaded = load(file, overrides)
    if not explain:
        click.echo(dump(loaded.config), nl=False)
        return
    console = wide_console()
    for line in explained(loaded):
        console.print(line, soft_wrap=True)


def explained(loaded: Loaded) -> Iterator[Text]:
    """Two lines per key: value and where it comes from, then what it means."""
    section = ""
    for name, info in fields(loaded.config.endpoints or ("NAME",)):
        table, _, leaf = name.rpartition(".")
        if table != section:
            section = table
            yield Text(f"\n[{section}]", style="bold")
        source, default = loaded.sources.get(name), f"default {_shown(info.default)}"
        origin = f"{Path(source).name if source.endswith('.toml') else source}; {default}" if source else "default"
        value = info.default if table == "endpoints.NAME" else value_of(loaded.config, name)
        line = Text(f"  {leaf} = {_shown(value)}", style="bold" if source else "")
        yield line.append(f"   ({origin})", style="dim")
        yield Text(f"      {info.description}{_notes(marks(info))}")


def _notes(found: dict[str, Any]) -> str:
    notes = [f"only with {mode} = {' or '.join(map(repr, wanted))}" for mode, wanted in found["only_if"].items()]
    if found["unless"]:
        notes.append("no effect with " + " and ".join(f"{mode} = {value!r}" for mode, value in found["unless"].items()))
    if found["resumable"]:
        notes.append("--resume may change it")
    return f" ({'; '.join(notes)})" if notes else ""


def _shown(value: Any) -> str:
    return json.dumps(value)
