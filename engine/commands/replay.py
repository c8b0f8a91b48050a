"""`synth-engine replay`: a recorded run, played back in the dashboard."""

from __future__ import annotations

import re

import click

from engine.errors import ConfigError
from engine.rundir.layout import find_run
from engine.supervise.background import on_terminal, show_dashboard

_CLOCK = re.compile(r"(?:(\d+):)?(\d+):([0-5]?\d(?:\.\d+)?)")
_SECONDS = re.compile(r"\d+(?:\.\d+)?")


@click.command()
@click.argument("name", metavar="[RUN]", required=False)
@click.option("--at", metavar="TIME", help="Where to begin, of the run's clock: 00:31:00, 31:00 or seconds.")
@click.option(
    "--speed",
    metavar="X",
    type=click.FloatRange(min=0, min_open=True, max=1000),
    default=1.0,
    show_default=True,
    help="How many seconds of the run pass in one.",
)
@click.option("--dir", "directory", metavar="DIR", default="runs", show_default=True, help="Where runs live.")
def command(name: str | None, at: str | None, speed: float, directory: str) -> None:
    """Play RUN (default: the latest) back, with the screens of a live one."""
    run, begin_s = find_run(name, directory), None if at is None else seconds(at)
    if not on_terminal():
        raise ConfigError("the dashboard needs a terminal; `show` tells about a run without one")
    begin = () if begin_s is None else ("--at", str(begin_s))
    show_dashboard(str(run.path), "--replay", *begin, "--speed", str(speed))


def seconds(text: str) -> float:
    """The seconds of HH:MM:SS, MM:SS or a number of seconds.

    Raises ConfigError if it is none of them."""
    if _SECONDS.fullmatch(text):
        return float(text)
    found = _CLOCK.fullmatch(text)
    if found is None:
        raise ConfigError(f"--at {text}: is none of HH:MM:SS, MM:SS and seconds")
    hours, minutes, rest = (float(part or 0) for part in found.groups())
    return hours * 3600 + minutes * 60 + rest
