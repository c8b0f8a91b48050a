"""`synth-engine runs`: list runs, stop them, remove them, collect what they no longer need."""

from __future__ import annotations

import os
import shlex
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import psutil
from rich.table import Table
from rich.text import Text

from engine.config.load import load
from engine.errors import ConfigError, RunError, SynthError
from engine.learnerdir.progress import read_progress
from engine.preflight.manifest import point_latest
from engine.processes.alive import lives
from engine.report.console import wide_console
from engine.report.progress import ProgressView
from engine.rundir.layout import RunDir, find_run, read_json
from engine.supervise.background import ask_to_stop, ending_of, supervisor_of
from engine.supervise.supervisor import DRAINING, EXIT_OK, SupervisorPhase, SupervisorStatus

_BASE = click.option("--dir", "directory", metavar="DIR", default="runs", show_default=True, help="Where runs live.")
_TICK_S = 0.1
_STOP_GRACE_S = 45.0
"""Beyond run.drain_s a stop takes at most 35 s, and a killed child 5 s more."""
_COLUMNS = ("run", "created", "phase", "steps", "held-out before", "after", "MB")


@click.group(invoke_without_command=True)
@_BASE
@click.pass_context
def command(ctx: click.Context, directory: str) -> None:
    """List runs, stop or remove them, collect garbage; without a subcommand: list."""
    # `runs --dir DIR gc` and `runs gc --dir DIR` mean the same.
    ctx.default_map = {name: {"directory": directory} for name in command.commands}
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_runs, directory=directory)


@command.command("list")
@_BASE
def list_runs(directory: str) -> None:
    """List runs, the oldest first."""
    table = Table()
    for column in _COLUMNS:
        table.add_column(column, justify="left" if column in ("run", "created", "phase") else "right")
    for run in all_runs(Path(directory)):
        try:
            table.add_row(*_row(run))
        except (SynthError, OSError, KeyError) as error:
            reason = f"its files do not say {error}" if isinstance(error, KeyError) else error
            table.add_row(run.path.name, "", Text(f"unreadable: {reason}"))
    wide_console().print(table if table.row_count else f"no runs in {directory}; `synth-engine run` makes one")


@command.command()
@click.argument("name", metavar="[RUN]", required=False)
@_BASE
def stop(directory: str, name: str | None) -> None:
    """Stop RUN, or the one that is live: what is finished is saved, and `run --resume` goes on.

    While it drains, Ctrl-C or the same command once more stops it at once.
    """
    run = find_run(name, directory) if name else _the_live_one(directory)
    supervisor = ask_to_stop(run)
    if supervisor is None:
        click.echo(f"{run.path} is not running")
        return
    _show_drain(run, supervisor)
    ending = ending_of(run, supervisor.pid)
    if ending is None:
        raise RunError(f"{run.path}: its supervisor was killed while it drained; `run --resume` goes on")
    if ending.code == EXIT_OK:
        click.echo(f"{run.path} had reached its end")
        return
    click.echo(f"{ending.message}; go on with:  synth-engine run --resume {shlex.quote(str(run.path))}")


def _show_drain(run: RunDir, supervisor: psutil.Process) -> None:
    """Until it ends; Ctrl-C asks it once more. Raises RunError if that takes longer than any drain may."""
    config = load(run.config).config
    view, notes = ProgressView(run, config, wide_console()), [DRAINING]
    limit_s = config.run.drain_s + _STOP_GRACE_S
    limit = time.monotonic() + limit_s
    while time.monotonic() < limit:
        try:
            if not lives(supervisor):
                return
            view(SupervisorStatus(phase=SupervisorPhase.DRAINING, waiting_for=(), notes=tuple(notes)))
            notes.clear()
            time.sleep(_TICK_S)
        except KeyboardInterrupt:
            ask_to_stop(run)
    raise RunError(f"{run.path} still drains after {limit_s:.0f} s; the same command stops it at once")


def _the_live_one(directory: str) -> RunDir:
    live = live_runs(Path(directory))
    if len(live) != 1:
        names = (
            f"these runs are live: {', '.join(run.path.name for run in live)}; name one" if live else "no run is live"
        )
        raise ConfigError(f"{directory}: {names}")
    return live[0]


def live_runs(base: Path) -> list[RunDir]:
    """The runs below `base` that a supervisor works on now; one whose files cannot be read is none."""
    live = []
    for run in all_runs(base):
        with suppress(SynthError, OSError):
            if supervisor_of(run) is not None:
                live.append(run)
    return live


@command.command()
@click.argument("names", metavar="RUN...", nargs=-1, required=True)
@click.option("--yes", is_flag=True, help="Do not ask.")
@_BASE
def remove(directory: str, names: tuple[str, ...], yes: bool) -> None:  # noqa: FBT001 - click passes flags by name
    """Remove runs of DIR, by name or path, with everything in them. A run that is being worked on is refused.

    Of a link only the link is removed: what it points at stays.
    """
    # All names are looked at first: one that is refused leaves the others untouched.
    for path in list(dict.fromkeys(_removable(name, Path(directory)) for name in names)):
        size = "a link" if path.is_symlink() else f"{_megabytes(path):.1f} MB"
        if not yes:
            click.confirm(f"remove {path} ({size})?", abort=True)
        if path.is_symlink():
            path.unlink()
            click.echo(f"removed {path}, a link; what it points at stays")
            continue
        run = RunDir(path)
        with run.locked():
            _leave_latest(run)
            shutil.rmtree(path)
        click.echo(f"removed {path}")


def _removable(name: str, base: Path) -> Path:
    """What `name` means directly below `base`: a run, or a link, which is not followed.

    Raises ConfigError, with the remedy, for anything else."""
    path = Path(name) if os.sep in name else base / name
    if path.name in ("", "..") or path.parent.resolve() != base.resolve():
        raise ConfigError(
            f"{name!r} is not directly in {base}: only runs of that directory are removed; name one of them "
            f"(`synth-engine runs list --dir {base}`), or pass --dir DIR"
        )
    path = base.resolve() / path.name
    if not os.path.lexists(path):
        raise ConfigError(f"no run {path.name!r} in {base}; `synth-engine runs list --dir {base}` lists them")
    if not path.is_symlink():
        try:
            _ = RunDir(path).run_id
        except (SynthError, OSError) as error:
            raise ConfigError(
                f"{path} is not removed, for it is no run of synth-engine ({error}); `rm -r` does it, if you are sure"
            ) from error
    return path


def _leave_latest(run: RunDir) -> None:
    """If `latest` points at this run, turn it to the newest of the others."""
    latest = run.path.parent / "latest"
    if latest.is_symlink() and latest.resolve() == run.path:
        others = [other for other in all_runs(run.path.parent) if other.path != run.path]
        if others:
            point_latest(others[-1])
        else:
            latest.unlink()


@command.command()
@click.argument("name", metavar="[RUN]", required=False)
@_BASE
def gc(directory: str, name: str | None) -> None:
    """Delete old adapters and leftovers of killed processes, of RUN or of all.

    Kept: the first, last and best adapter, every stream.keep_adapters_every-th, checkpoints, everything recorded. Of
    all, a run that is being worked on is skipped.
    """
    for run in [find_run(name, directory)] if name else list(all_runs(Path(directory))):
        try:
            with run.locked():
                freed = sum(map(_removed, list(garbage(run))))
        except (SynthError, OSError) as error:
            if name:
                raise
            click.echo(f"skipped {run.path.name}: {error}")
        else:
            click.echo(f"{run.path}: {freed / 1e6:.1f} MB freed")


def all_runs(base: Path) -> Iterator[RunDir]:
    """Every run directory below `base`, the oldest first."""
    found = [RunDir(path.parent) for path in base.glob("*/manifest.json") if not path.parent.is_symlink()]
    yield from sorted(found, key=lambda run: run.manifest.stat().st_mtime)


def garbage(run: RunDir) -> Iterator[Path]:
    """What nobody needs any more: staged leftovers, and adapters that no rule keeps; nothing behind a link.

    Raises ConfigError or RunError for a directory that is no run."""
    _ = run.run_id
    every = load(run.config).config.stream.keep_adapters_every
    for place in (run.path, run.adapters, run.learner):
        if not place.is_symlink():
            yield from place.glob(".*.tmp-*")
    if run.adapters.is_symlink():
        return
    versions = run.versions()
    kept = {*versions[:1], *versions[-1:], run.best, *(version for version in versions if version % every == 0)}
    yield from (run.adapter(version) for version in versions if version not in kept)


def _removed(path: Path) -> int:
    size = _bytes(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
    return size


def _row(run: RunDir) -> list[str]:
    manifest, summary = read_json(run.manifest) or {}, read_json(run.summary) or {}
    phase = (read_json(run.path / "phase.json") or {"phase": "not started"})["phase"]
    step = read_progress(run).counters.step
    steps = load(run.config).config.run.steps
    before, after = _mean(summary.get("heldout_before")), _mean(summary.get("heldout_after"))
    size = f"{_megabytes(run.path):.1f}"
    return [run.path.name, manifest["created_at"], phase, f"{step}/{steps}", before, after, size]


def _mean(measured: dict[str, Any] | None) -> str:
    return f"{measured['mean']:.3f}" if measured else ""


def _megabytes(path: Path) -> float:
    return _bytes(path) / 1e6


def _bytes(path: Path) -> int:
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file() and not file.is_symlink())
