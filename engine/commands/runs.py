"""`synth-engine runs`: list runs, remove them, collect what they no longer need."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from engine.config import load
from engine.errors import SynthError
from engine.manifest import point_latest
from engine.report.console import wide_console
from engine.rundir import RunDir, find_run, read_json

_BASE = click.option("--dir", "directory", metavar="DIR", default="runs", show_default=True, help="Where runs live.")
_COLUMNS = ("run", "created", "phase", "steps", "held-out before", "after", "MB")


@click.group(invoke_without_command=True)
@_BASE
@click.pass_context
def command(ctx: click.Context, directory: str) -> None:
    """List runs, remove them, collect garbage; without a subcommand: list."""
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
@click.argument("names", metavar="RUN...", nargs=-1, required=True)
@click.option("--yes", is_flag=True, help="Do not ask.")
@_BASE
def remove(directory: str, names: tuple[str, ...], yes: bool) -> None:  # noqa: FBT001 - click passes flags by name
    """Remove runs with everything in them. A run that is being worked on is refused."""
    for name in names:
        run = find_run(name, directory)
        if not yes:
            click.confirm(f"remove {run.path} ({_megabytes(run.path):.1f} MB)?", abort=True)
        with run.locked():
            _leave_latest(run)
            shutil.rmtree(run.path)
        click.echo(f"removed {run.path}")


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
                freed = sum(_removed(path) for path in garbage(run))
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
    """What nobody needs any more: staged leftovers, and adapters that no rule keeps."""
    for place in (run.path, run.adapters, run.learner):
        yield from place.glob(".*.tmp-*")
    versions = run.versions()
    every = load(run.config).config.stream.keep_adapters_every
    best = run.adapters / "best"
    kept = {*versions[:1], *versions[-1:], *(version for version in versions if version % every == 0)}
    if best.is_symlink():
        kept.add(int(best.readlink().name[1:]))
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
    step = (read_json(run.progress) or {"step": 0})["step"]
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
