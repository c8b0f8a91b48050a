"""`synth-engine metrics`: a run's metrics in other tools, and the table of their names."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import click

from engine.rundir.layout import find_run
from engine.telemetry.names import tables
from engine.telemetry.serve import relay, serve_metrics, until_signalled
from engine.telemetry.writers import WRITERS, open_writer

_DIRECTORY = click.option(
    "--dir", "directory", metavar="DIR", default="runs", help="Where runs live.", show_default=True
)


@click.group()
def command() -> None:
    """A run's metrics in TensorBoard, W&B, trackio and Prometheus; docs/metrics.md has their names."""


@command.command()
@click.argument("run", required=False)
@click.option("--to", required=True, type=click.Choice(list(WRITERS)), help="Each needs its extra: synth-engine[NAME].")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="Where its files go.")
@click.option("--follow", is_flag=True, help="Go on with new rows, until Ctrl-C.")
@_DIRECTORY
def export(run: str | None, to: str, out: Path | None, follow: bool, directory: str) -> None:  # noqa: FBT001 - click passes flags by name
    """Write the metrics of RUN (default: the latest) to another tool, from the first row.

    What was written of the same run before is replaced.
    """
    found = find_run(run, directory)
    stopping = until_signalled() if follow else lambda: True
    with closing(open_writer(to, found, out)) as writer:
        rows = relay(found, [writer], stopping)
    click.echo(f"{rows:,} rows of {found.run_id} written to {to}")


@command.command()
@click.argument("run", required=False)
@click.option("--port", required=True, type=click.IntRange(0, 65535), help="Of 127.0.0.1; 0 picks a free one.")
@_DIRECTORY
def serve(run: str | None, port: int, directory: str) -> None:
    """Answer with the newest rows of RUN (default: the latest) as Prometheus text, until Ctrl-C.

    Only this machine can ask.
    """
    serve_metrics(find_run(run, directory), (), port, until_signalled())


@command.command()
def names() -> None:
    """Print every key with unit, kind, meaning and name in Prometheus, as Markdown."""
    click.echo(tables(), nl=False)
