"""`synth-engine install-sglang`: SGLang's own virtual environment."""

from __future__ import annotations

from pathlib import Path

import click

from engine.serving.gpus import gpus
from engine.serving.install import install, installed
from engine.serving.sglang import VERSION, environment_directory


@click.command()
@click.argument("directory", required=False, metavar="[DIR]")
@click.option("--cpu", is_flag=True, help="For a machine without a GPU: torch's own operators, about 3 GB on disk.")
def command(directory: str | None, cpu: bool) -> None:  # noqa: FBT001 - click passes flags by name
    """Make the virtual environment of the SGLang policy server.

    SGLang pins torch and transformers to versions of its own, so it never shares an environment with synth-engine.
    Without DIR the environment lies where `policy.launch = "sglang"` looks for it; with one, name it in policy.sglang.
    Run it again at any time: what is there already is kept.
    """
    place = Path(directory).resolve() if directory else environment_directory(cpu=cpu)
    if installed(place, cpu=cpu):
        click.echo(f"SGLang {VERSION} is installed in {place}")
    else:
        if not cpu and not gpus():
            click.secho("No GPU is visible here; `--cpu` installs what runs without one.", fg="yellow", err=True)
        facts = install(place, lambda step: click.secho(f"* {step}", bold=True), cpu=cpu)
        click.echo(f"SGLang {facts.sglang} with torch {facts.torch}, Python {facts.python} is installed in {place}")
    key = "" if directory is None else f" --set policy.sglang={place}"
    click.echo(f"  synth-engine run --set policy.launch=sglang{key}")
