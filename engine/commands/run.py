"""`synth-engine run`: prepare a run directory, say what will happen, supervise it, and tell what came out."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

import click
from rich.console import Console

from engine.config.load import load, text_override
from engine.config.tree import Config
from engine.errors import ConfigError
from engine.packs.pack import load_pack
from engine.preflight.judged import require_decided
from engine.preflight.manifest import create, pack_file, reopen
from engine.preflight.rehearsal import rehearse
from engine.report.console import wide_console
from engine.report.progress import ProgressView
from engine.rundir.layout import RunDir, find_run, read_json
from engine.serving.models import find_models
from engine.stream.integrity import require_complete
from engine.supervise.background import Background, on_terminal
from engine.supervise.supervisor import EXIT_CONFIG, EXIT_OK, Ending, Supervisor
from engine.task import Split
from engine.trust.opening import RESUMED, open_run, trust_option

_MEASURED = "about 5 minutes on two cores, as measured for this configuration"
_STOP = "Ctrl-C once drains and saves, twice stops at once"
_EXAMPLES = """\b
synth-engine run                             the tiny model on this machine, in minutes
synth-engine run --config dry                everything but the models, in seconds
synth-engine run --set run.steps=20 --name short
synth-engine run --resume                    the latest run, where it stopped
synth-engine run --resume received/run --trust    one from elsewhere, with what it names
synth-engine run --config mine.toml --plan   what it would start, and whether it fits
"""


@click.command(epilog=_EXAMPLES)
@click.option(
    "--config",
    "file",
    metavar="FILE",
    help="A TOML file, or a shipped name: tiny (default), dry, qwen0.5b-cpu, qwen3-4b-1gpu, qwen3-8b-8gpu.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key; repeatable. `config show` lists them.",
)
@click.option("--name", metavar="NAME", help="Name of the run; the same as --set run.name=NAME.")
@click.option(
    "--dir", "directory", metavar="DIR", help="Where runs live; the same as --set run.dir=DIR.  [default: runs]"
)
@click.option("--metrics-port", type=int, metavar="N", help="Prometheus text on 127.0.0.1:N; --set metrics.port=N.")
@click.option("--resume", is_flag=False, flag_value="", metavar="[RUN]", help="Go on with a run: the latest, or RUN.")
@trust_option
@click.option("--plan", is_flag=True, help="Show placement, memory, commands and expected staleness; start nothing.")
@click.option("--plain", is_flag=True, help="No dashboard: one line per ten seconds, even on a terminal.")
def command(
    file: str | None,
    overrides: tuple[str, ...],
    name: str | None,
    directory: str | None,
    metrics_port: int | None,
    resume: str | None,
    **flags: bool,
) -> None:
    """Train a policy in mock worlds, end to end.

    On a terminal the dashboard is in front, and the run behind it needs no terminal: a closed one does not end it. q
    asks whether the run goes on (`synth-engine attach` looks again, `synth-engine runs stop` stops it) or is stopped.

    With --plain, or without a terminal, Ctrl-C once drains and saves, twice stops at once. However it was stopped,
    `synth-engine run --resume` goes on exactly where it was.

    Exit codes: 0 finished, or left running, 1 failed, 2 configuration, 130 or 143 stopped by Ctrl-C or SIGTERM.
    """
    console = wide_console()
    if metrics_port is not None:
        overrides = (*overrides, f"metrics.port={metrics_port}")
    if flags["trust"] and resume is None:
        raise ConfigError("--trust has no effect without --resume: a configuration that you name is your own")
    if flags["plan"]:
        if resume is not None:
            raise ConfigError("--plan has no effect on a run that exists: `synth-engine show` tells what it is")
        _plan(console, file, overrides)
        return
    if resume is None:
        given = {"run.name": name, "run.dir": directory}
        named = [text_override(key, value) for key, value in given.items() if value is not None]
        wanted = load(file or "tiny", (*overrides, *named)).config
        rehearse(wanted, pack_file(wanted.tasks.pack))
        run = create(wanted)
        config = load(run.config).config
    else:
        if file or name:
            raise ConfigError("--resume takes name and configuration from the run; change single keys with --set")
        run = find_run(resume or None, directory or "runs")
        wanted = open_run(run, overrides, RESUMED, trust=flags["trust"])
        # Under the lock: what a run that is being worked on reads must not change.
        with run.locked():
            require_complete(run, checksums=True)
            # First: what is refused must not become the run's configuration.
            rehearse(wanted, run.pack)
            config = reopen(run, overrides)
    front = on_terminal() and not flags["plain"]
    announce(console, run, config, measured=resume is None and file in (None, "tiny") and not overrides, front=front)
    progress = ProgressView(run, config, console)
    ending = Background(run, progress).run() if front else Supervisor(run, config, progress).run()
    if ending is None:
        _detached(console, run)
        return
    _finish(console, run, ending)
    raise SystemExit(ending.code)


def _plan(console: Console, file: str | None, overrides: tuple[str, ...]) -> None:
    # Only this way needs the tables of a plan.
    from engine.report.plan import show_plan  # noqa: PLC0415

    config = load(file or "tiny", overrides).config
    require_decided(config, load_pack(pack_file(config.tasks.pack)).tasks)
    show_plan(console, find_models(config).into(config))


def announce(console: Console, run: RunDir, config: Config, *, measured: bool, front: bool) -> None:
    """What is about to happen, how long it takes (`measured` if this is the run of README.md) and where it goes.

    `front`: the dashboard will be in front."""
    schedule = config.schedule
    server = {
        "embedded": "embedded CPU server",
        "sglang": "SGLang server",
        "none": ", ".join(config.policy.urls),
        "scripted": "scripted policy",
    }
    count = f"{config.started_servers} x " if config.started_servers > 1 else ""
    endpoints = "".join(f"SGLang server for endpoint {name}, " for name in config.started_endpoints)
    learner = "GRPO learner" if config.learner.kind == "grpo" else "simulated learner"
    per_step = schedule.groups_per_step * schedule.group_size
    live = f"at most {config.max_live} live = ({schedule.max_staleness} + 1) x {schedule.groups_per_step} groups x "
    manifest = read_json(run.manifest) or {}
    model = Path(config.model.path).name
    if manifest.get("hub_id"):
        model = f"{manifest['hub_id']} at commit {manifest['hub_commit'][:7]}"
    rows = {
        "run": f"{run.path.name}  (seed {config.run.seed})",
        "model": f"{model}  ({config.model.path})",
        "tasks": config.tasks.pack,
        "training": f"{config.run.steps} steps x {schedule.groups_per_step} groups x {schedule.group_size} episodes = "
        f"{config.run.steps * per_step:,} episodes or more; {live}{schedule.group_size}",
        "measuring": _measuring(config, manifest["tasks"]),
        "processes": f"{count}{server[config.policy.launch]}, {endpoints}{learner}, engine; logs and all else in "
        f"{run.path}",
        "time": _MEASURED if measured else "unknown until the first steps; then the ETA shows it",
        "to stop": "q in the dashboard asks: leave it running, or stop" if front else _STOP,
    }
    for key, value in rows.items():
        console.print(f"  [bold]{key:<10}[/] {_escaped(value)}", soft_wrap=True)
    console.print()


def _measuring(config: Config, splits: Mapping[str, int]) -> str:
    parts = []
    if heldout := min(config.eval.heldout_tasks, splits.get(Split.HELDOUT, 0)):
        parts.append(f"{heldout} held-out tasks before and after")
    if config.eval.every and (validation := min(config.eval.validation_tasks, splits.get(Split.VALIDATION, 0))):
        parts.append(f"{validation} validation tasks every {config.eval.every} steps")
    return ", ".join(parts) or "nothing"


def _detached(console: Console, run: RunDir) -> None:
    name = shlex.quote(str(run.path))
    for what, how in (("The run goes on; look at it again with", "attach"), ("Stop it with", "runs stop")):
        console.print(f"{what}:  synth-engine {how} {name}", markup=False, soft_wrap=True)


def _finish(console: Console, run: RunDir, ending: Ending) -> None:
    resume = f"synth-engine run --resume {shlex.quote(str(run.path))}"
    if ending.code == EXIT_OK:
        # Charts need matplotlib, which takes longer to import than a run takes to start.
        from engine.report.words import conclude  # noqa: PLC0415

        conclude(console, run)
        return
    console.print(_escaped(ending.message), style="bold red", soft_wrap=True)
    if ending.code == EXIT_CONFIG and not next(run.trajectories.glob("*"), None):
        name, base = shlex.quote(run.path.name), shlex.quote(str(run.path.parent))
        remove = f"synth-engine runs remove {name} --dir {base}"
        console.print(f"Nothing was done in {run.path}; remove it with:  {remove}", markup=False, soft_wrap=True)
        return
    console.print(f"Everything finished is kept in {run.path}; go on with:  {resume}", markup=False, soft_wrap=True)


def _escaped(text: str) -> str:
    return text.replace("[", r"\[")
