"""`synth-engine attach`: the dashboard on a run, live or ended, or a picture of it."""

from __future__ import annotations

import html
import math
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import click

from engine.commands.runs import live_runs
from engine.config.environment import child_environment
from engine.errors import ConfigError, RunError
from engine.processes.child import PYTHON
from engine.rundir.layout import RunDir, find_run
from engine.supervise.background import DASHBOARD, ask_to_stop, on_terminal, show_dashboard

_CHROMIUMS = ("chromium", "chromium-browser", "google-chrome")
_CHROMIUM_S = 60.0
_VIEW_BOX = re.compile(r'viewBox="0 0 ([\d.]+) ([\d.]+)"')
_SIZE = re.compile(r"[1-9]\d{0,3}x[1-9]\d{0,3}")


@click.command()
@click.argument("name", metavar="[RUN]", required=False)
@click.option("--pick", is_flag=True, help="Choose among all runs first; so it is where several are live.")
@click.option("--readonly", is_flag=True, help="Look only: nothing can be stopped or cancelled from it.")
@click.option(
    "--shot",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write one picture, .svg or .png, and end; needs no terminal.",
)
@click.option(
    "--screen",
    metavar="NAME",
    help="Which one: rollouts, learner, engine, log, an episode's id, or that with /tokens or /group.",
)
@click.option("--size", metavar="WxH", help="Columns and rows of the picture, 120x36 or the like.")
@click.option("--dir", "directory", metavar="DIR", default="runs", show_default=True, help="Where runs live.")
def command(
    name: str | None, directory: str, shot: Path | None, screen: str | None, size: str | None, **flags: bool
) -> None:
    """Look at RUN (default: the latest) in the dashboard.

    It is one more viewer of the run: leaving it changes nothing. A run that is stopped from here drains as one that
    `synth-engine runs stop` stops.
    """
    readonly = ("--readonly",) if flags["readonly"] else ()
    if shot is not None:
        if flags["pick"] or readonly:
            raise ConfigError(f"--{'pick' if flags['pick'] else 'readonly'} has no effect with --shot")
        _picture(find_run(name, directory), shot, screen, size)
        click.echo(f"wrote {shot}")
        return
    for option, value in {"--screen": screen, "--size": size}.items():
        if value is not None:
            raise ConfigError(f"{option} has no effect without --shot: on a terminal keys choose, and it is filled")
    if name is not None and flags["pick"]:
        raise ConfigError("--pick has no effect with a RUN that is named")
    if not on_terminal():
        raise ConfigError(
            "the dashboard needs a terminal; `--shot FILE` takes a picture without one, `show` tells more"
        )
    if flags["pick"] or (name is None and len(live_runs(Path(directory))) > 1):
        with tempfile.NamedTemporaryFile("r", encoding="utf-8") as chosen:
            if show_dashboard("--runs", directory, "--chosen", chosen.name, *readonly):
                _stop(RunDir(Path(chosen.read())))
        return
    run = find_run(name, directory)
    if show_dashboard(str(run.path), *readonly):
        _stop(run)


def _stop(run: RunDir) -> None:
    if ask_to_stop(run) is None:
        click.echo("it is not running any more")
        return
    line = f"synth-engine runs stop {shlex.quote(str(run.path))}"
    click.echo(f"{run.path} drains: what is finished is being saved; wait for it with:  {line}")


def _picture(run: RunDir, shot: Path, screen: str | None, size: str | None) -> None:
    """Draw the dashboard once into `shot`."""
    if size is not None and not _SIZE.fullmatch(size):
        raise ConfigError(f"--size {size}: is not of the form 120x36, columns and rows")
    chromium = None
    if shot.suffix == ".png":
        chromium = next(filter(None, map(shutil.which, _CHROMIUMS)), None)
        if chromium is None:
            raise ConfigError(
                f"{shot}: a .png needs Chromium, and none of {', '.join(_CHROMIUMS)} is on PATH; install it "
                "(apt-get install chromium fonts-firacode), or write a .svg"
            )
    elif shot.suffix != ".svg":
        raise ConfigError(f"{shot}: a picture is a .svg or a .png")
    with tempfile.TemporaryDirectory() as scratch:
        vector = Path(scratch) / "shot.svg"
        given = {"--size": size, "--screen": screen}
        chosen = [argument for option, value in given.items() if value for argument in (option, value)]
        argv = (*PYTHON, "-m", DASHBOARD, str(run.path), "--shot", str(vector), *chosen)
        code = subprocess.run(argv, env=child_environment(), stdin=subprocess.DEVNULL, check=False).returncode
        if code or not vector.exists():
            raise RunError(f"the dashboard drew no picture (exit code {code}); what it said stands above")
        if chromium is None:
            shutil.copyfile(vector, shot)
        else:
            _rasterize(chromium, vector, shot)


def _rasterize(chromium: str, vector: Path, shot: Path) -> None:
    """Only a browser sets the text of the SVG as wide as it says."""
    found = _VIEW_BOX.search(vector.read_text(encoding="utf-8"))
    if found is None:
        raise RunError(f"the dashboard's picture gives no size; write a .svg instead of {shot}")
    width, height = found.groups()
    window = ",".join(str(math.ceil(float(side))) for side in (width, height))
    page = vector.with_suffix(".html")
    # As an image it can load nothing and run nothing, whatever text it shows.
    image = f'<img src="{html.escape(vector.name)}" width="{width}" height="{height}" style="display:block">'
    page.write_text(f'<!doctype html><body style="margin:0">{image}', encoding="utf-8")
    argv = [
        *(chromium, "--headless=new", "--hide-scrollbars", "--disable-gpu", "--no-first-run"),
        *(f"--user-data-dir={vector.parent / 'profile'}", f"--window-size={window}"),
        "--default-background-color=00000000",
        # Chromium refuses its sandbox to root, as in a container.
        *(("--no-sandbox",) if os.geteuid() == 0 else ()),
        *(f"--screenshot={shot.absolute()}", page.as_uri()),
    ]
    shot.unlink(missing_ok=True)
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_CHROMIUM_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise RunError(f"{chromium} did not draw {shot} within {_CHROMIUM_S:.0f} s; write a .svg instead") from error
    if not shot.exists():
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise RunError(f"{chromium} drew no {shot} (exit code {done.returncode}): {said}")
