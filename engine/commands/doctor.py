"""`synth-engine doctor`: what this machine lacks for a configuration."""

from __future__ import annotations

import click

from engine.config.load import load
from engine.preflight.doctor import Severity, examine

_COLOURS = {Severity.OK: "green", Severity.NOTE: "yellow", Severity.BAD: "red"}


@click.command()
@click.option("--config", "file", metavar="FILE", help="A TOML file, or a shipped name.  [default: tiny]")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key; repeatable.")
def command(file: str | None, overrides: tuple[str, ...]) -> None:
    """Look at this machine, and say what a run with this configuration would miss and how to mend it.

    Nothing is started or changed. Exit code 1 if a run would fail.
    """
    bad = 0
    for finding in examine(load(file or "tiny", overrides).config):
        click.echo(
            click.style(f"{finding.state:<5}", fg=_COLOURS[finding.state]) + f"{finding.about:<13} {finding.what}"
        )
        if finding.remedy:
            click.echo(f"{'':<19}{finding.remedy}")
        bad += finding.state is Severity.BAD
    click.echo("nothing is missing" if not bad else f"{bad} of these would stop the run")
    raise SystemExit(1 if bad else 0)
