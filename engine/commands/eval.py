"""`synth-engine eval`: any policy and adapter on a split of a pack."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import click
from rich.console import Console
from rich.table import Table

from engine.commands.export import chosen_adapter
from engine.config.load import load, text_override
from engine.config.tree import Config
from engine.errors import ConfigError
from engine.evals.split import Evaluation, Suite, evaluate
from engine.packs.exported import read_exported
from engine.packs.pack import load_pack
from engine.preflight.judged import require_decided
from engine.preflight.manifest import pack_file
from engine.processes.event_loop import UVLOOP
from engine.report.console import wide_console
from engine.run.compose import build_parts
from engine.run.served_policy import watched
from engine.rundir.layout import RunDir, find_run
from engine.rundir.rows import write_rows
from engine.serving.served import READY_S, fitting_config, served_apart
from engine.task import Split
from engine.trust.opening import PLAYED, open_run, trust_option
from engine.types import EpisodeGroup
from engine.world.store import EntryStore

_EXAMPLES = """\b
synth-engine eval --run                      the best adapter of the latest run
synth-engine eval --run tiny --adapter none  its base, on the same tasks
synth-engine eval --run received/run --trust a run from elsewhere, with what it names
synth-engine eval --config mine.toml --url http://localhost:30000
"""


@click.command("eval", epilog=_EXAMPLES)
@click.option(
    "--run",
    metavar="[RUN]",
    is_flag=False,
    flag_value="",
    help="Model, tasks and best adapter of a run: the latest, or RUN.",
)
@click.option(
    "--config", "file", metavar="FILE", help="Instead of a run: a TOML file, or a shipped name: tiny (default), dry."
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key; repeatable.")
@click.option("--adapter", metavar="ADAPTER", help="A directory, a version of the run (60), or `none` for the base.")
@click.option("--url", metavar="URL", help="A running server instead of an embedded one.")
@click.option(
    "--split",
    metavar="SPLIT",
    type=click.Choice([split.value for split in Split]),
    default=Split.HELDOUT.value,
    show_default=True,
    help=f"Which tasks: {', '.join(Split)}.",
)
@click.option(
    "--tasks", "limit", metavar="N", type=click.IntRange(1), default=400, show_default=True, help="At most N tasks."
)
@trust_option
@click.option("--dir", "directory", metavar="DIR", help="With --run: where runs live.  [default: runs]")
def command(**options: Any) -> None:
    """Measure a policy: mean reward with its 95 % interval, the breakdown, and one line per task.

    One episode per task, at policy.temperature. Without --adapter, --run means the run's best adapter, else the base.
    """
    wanted = Wanted(**options)
    wanted.check()
    run = find_run(wanted.run or None, wanted.directory or "runs") if wanted.run is not None else None
    overrides = wanted.pointed(run)
    config = (
        open_run(run, overrides, PLAYED, trust=wanted.trust) if run else load(wanted.file or "tiny", overrides).config
    )
    adapter = _adapter(config, run, wanted.adapter)
    config = fitting_config(config, adapter)
    suite = _suite(config, Split(wanted.split), wanted.limit)
    console = wide_console()
    told = f"{_policy(config, adapter)}: {len(suite.tasks)} {wanted.split} tasks of {config.tasks.pack}"
    console.print(told, markup=False, soft_wrap=True)
    if config.policy.launch == "none":
        waiting = f"waiting for {', '.join(config.policy.urls)}, at most {READY_S:g} s"
        console.print(waiting, markup=False, soft_wrap=True)
    result, groups = _measure(config, suite, adapter)
    console.print(_task_table(groups))
    _print_result(console, result)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The options of the command."""

    run: str | None
    file: str | None
    overrides: tuple[str, ...]
    adapter: str | None
    url: str | None
    split: str
    limit: int
    trust: bool
    directory: str | None

    def check(self) -> None:
        """Refuse what excludes each other, or has no effect.

        Raises ConfigError."""
        if self.run is not None and self.file is not None:
            raise ConfigError("--run and --config exclude each other: a run brings its configuration")
        if self.run is None and self.directory is not None:
            raise ConfigError("--dir has no effect without --run")
        if self.run is None and self.trust:
            raise ConfigError("--trust has no effect without --run: a configuration that you name is your own")

    def pointed(self, run: RunDir | None) -> tuple[str, ...]:
        """The overrides, with the run's own copy of its pack, and the server of --url."""
        pack = (text_override("tasks.pack", str(run.pack)),) if run else ()
        server = (f'policy.urls=["{self.url}"]', 'policy.launch="none"') if self.url else ()
        return (*pack, *self.overrides, *server)


def _adapter(config: Config, run: RunDir | None, adapter: str | None) -> Path | None:
    if config.policy.launch == "scripted":
        if adapter is not None:
            raise ConfigError("--adapter has no effect with policy.launch = 'scripted': no model takes part; remove it")
        return None
    if adapter == "none" or (adapter is None and run is None):
        return None
    if adapter is not None and Path(adapter).is_dir():
        return Path(adapter).resolve()
    if run is None:
        raise ConfigError(f"--adapter {adapter}: no such directory (a version needs --run RUN)")
    return chosen_adapter(run, adapter)


def _policy(config: Config, adapter: Path | None) -> str:
    """What is measured, in words."""
    if config.policy.launch == "scripted":
        return f"script {config.policy.script}"
    return f"{config.model.path} with {f'adapter {adapter}' if adapter else 'the base'}"


def _suite(config: Config, split: Split, limit: int) -> Suite:
    pack = load_pack(pack_file(config.tasks.pack))
    tasks = [(index, task) for index, task in enumerate(pack.tasks) if task.split is split][:limit]
    if not tasks:
        raise ConfigError(f"{config.tasks.pack} has no {split} tasks")
    require_decided(config, (task for _, task in tasks))
    return Suite.of(config, "eval", tasks)


def _measure(config: Config, suite: Suite, adapter: Path | None) -> tuple[Evaluation, list[EpisodeGroup]]:
    mapping = config.world.mapping
    answers = read_exported(Path(mapping), load_pack(pack_file(config.tasks.pack)).tasks) if mapping else []
    with served_apart("eval", config, adapter) as run:
        if answers:
            write_rows(EntryStore, run.world, answers)
        return anyio.run(_evaluate, run, config, suite, adapter, backend_options={"use_uvloop": UVLOOP})


async def _evaluate(
    run: RunDir, config: Config, suite: Suite, adapter: Path | None
) -> tuple[Evaluation, list[EpisodeGroup]]:
    started = time.monotonic()
    groups: list[EpisodeGroup] = []

    async def emit(group: EpisodeGroup) -> EpisodeGroup:
        groups.append(group)
        return group

    def nothing(_: Any) -> None:
        """Swaps and live counts are of no interest here."""

    def clock() -> float:
        return time.monotonic() - started

    run_id = await anyio.to_thread.run_sync(lambda: run.run_id)
    async with (
        build_parts(run, config, clock, nothing, ready_s=READY_S) as parts,
        watched(parts.served, run_id, adapter) as name,
    ):
        result = await evaluate(suite, parts.seams, 0, name, emit, nothing)
    return result, sorted(groups, key=lambda group: group.position)


def _task_table(groups: list[EpisodeGroup]) -> Table:
    table = Table()
    for column in ("task", "reward", "F", "N", "I", "turns", "stop", "missed or violated"):
        table.add_column(column, overflow="fold")
    for group in groups:
        [episode] = group.episodes
        reward = episode.reward
        if reward is None:
            table.add_row(group.task_id, "masked", "", "", "", str(episode.turns), str(episode.stop), episode.error)
            continue
        wrong = [verdict.id for verdict in reward.items if verdict.met == (verdict.part == "forbidden")]
        parts = (f"{value:.2f}" for value in (reward.value, reward.F, reward.N, reward.I))
        table.add_row(group.task_id, *parts, str(episode.turns), str(episode.stop), ", ".join(wrong))
    return table


def _print_result(console: Console, result: Evaluation) -> None:
    console.print(
        f"[bold]reward {result.mean:.3f} ± {result.ci95:.3f}[/] (95 %)   F {result.F:.3f}   N {result.N:.3f}   "
        f"I {result.I:.3f}   {result.episodes} episodes, {result.masked} masked, {result.end_s - result.start_s:.0f} s",
        soft_wrap=True,
    )
