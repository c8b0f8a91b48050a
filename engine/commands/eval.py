"""`synth-engine eval`: any policy and adapter on a split of a pack."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import click
from rich.console import Console
from rich.table import Table

from engine.commands.export import chosen_adapter
from engine.config import Config, load
from engine.errors import ConfigError, RunError
from engine.evals.split import Evaluation, Suite, evaluate
from engine.manifest import model_directory, pack_file
from engine.parts import UVLOOP, build_parts
from engine.processes import Child
from engine.report.console import wide_console
from engine.rundir import RunDir, adapter_name, find_run, new_run_id, write_json
from engine.supervise import free_port, last_words, server_command, server_is_ready
from engine.task import Split
from engine.types import TaskGroup
from engine.world.tasks import load_pack

_READY_S = 180.0


@click.command("eval")
@click.option(
    "--run", metavar="RUN", is_flag=False, flag_value="", help="Model, pack and best adapter of a run (latest)."
)
@click.option("--config", "file", metavar="FILE", help="A TOML file or shipped name instead of a run.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override one key.")
@click.option("--adapter", metavar="DIR", help="An adapter directory, a version of the run, or `none` for the base.")
@click.option("--url", metavar="URL", help="A running server instead of an embedded one.")
@click.option("--split", type=click.Choice(list(Split)), default=Split.HELDOUT, show_default=True)
@click.option("--tasks", "limit", type=click.IntRange(1), default=400, show_default=True, help="At most so many tasks.")
def command(**options: Any) -> None:
    """Measure a policy: mean reward with its 95 % interval, the breakdown, and one line per task.

    One episode per task, at policy.temperature. Without --adapter, --run means the run's best adapter, else the base.
    """
    wanted = Wanted(**options)
    if wanted.run is not None and wanted.file is not None:
        raise ConfigError("--run and --config exclude each other: a run brings its configuration")
    found = find_run(wanted.run or None) if wanted.run is not None else None
    config = load(found.config if found else wanted.file or "tiny", wanted.pointed()).config
    weights = _adapter(found, wanted.adapter)
    console = wide_console()
    with tempfile.TemporaryDirectory(prefix="synth-eval-") as scratch:
        result, groups = _measure(Path(scratch), config, weights, Split(wanted.split), wanted.limit)
    console.print(_task_table(groups))
    told = f"adapter {weights}" if weights else "the base"
    console.print(
        f"{config.model.path} with {told}, {wanted.split} tasks of {config.tasks.pack}", markup=False, soft_wrap=True
    )
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

    def pointed(self) -> tuple[str, ...]:
        """The overrides, those of --url included."""
        server = (f'policy.urls=["{self.url}"]', 'policy.launch="none"') if self.url else ()
        return (*self.overrides, *server)


def _adapter(run: RunDir | None, adapter: str | None) -> Path | None:
    if adapter == "none" or (adapter is None and run is None):
        return None
    if adapter is not None and Path(adapter).is_dir():
        return Path(adapter).resolve()
    if run is None:
        raise ConfigError(f"--adapter {adapter}: no such directory (a version needs --run RUN)")
    return chosen_adapter(run, adapter)


def _measure(
    scratch: Path, config: Config, adapter: Path | None, split: Split, limit: int
) -> tuple[Evaluation, list[TaskGroup]]:
    """Start what is needed around a run directory that lives only as long as the measurement."""
    run = RunDir(scratch)
    run_id = new_run_id("eval")
    write_json(run.manifest, {"run_id": run_id})
    model = config.model.model_copy(update={"path": str(model_directory(config.model.path))})
    config = config.model_copy(update={"model": model})
    pack = load_pack(pack_file(config.tasks.pack))
    tasks = [(index, task) for index, task in enumerate(pack.tasks) if task.split is split][:limit]
    if not tasks:
        raise ConfigError(f"{config.tasks.pack} has no {split} tasks")
    suite = Suite(
        name="eval",
        tasks=tasks,
        limits=config.limits.value(),
        sampling=config.sampling,
        live_slots=config.eval.live_slots,
        seed=config.run.seed,
    )
    with _server(run, config, adapter) as urls:
        write_json(run.path / "servers.json", {"urls": urls})
        return anyio.run(_evaluate, run, config, suite, adapter, backend_options={"use_uvloop": UVLOOP})


@contextmanager
def _server(run: RunDir, config: Config, adapter: Path | None) -> Iterator[list[str]]:
    """The embedded server for the length of the block, or the configured ones."""
    if config.policy.launch != "embedded":
        yield list(config.policy.urls)
        return
    port = free_port()
    # Over HTTP it loads from below its adapter root only: here that is the adapter's own place.
    child = Child(server_command(run, config, port, adapter_root=adapter.parent if adapter else run.path))
    child.start(0)
    try:
        deadline = time.monotonic() + _READY_S
        url = f"http://127.0.0.1:{port}"
        while not server_is_ready(url):
            if child.ended() is not None or time.monotonic() > deadline:
                raise RunError(last_words(child, "the embedded server did not start"))
            time.sleep(0.1)
        yield [url]
    finally:
        child.stop()


async def _evaluate(
    run: RunDir, config: Config, suite: Suite, adapter: Path | None
) -> tuple[Evaluation, list[TaskGroup]]:
    started = time.monotonic()
    groups: list[TaskGroup] = []

    async def emit(tg: TaskGroup) -> None:
        groups.append(tg)

    def nothing(_: Any) -> None:
        """Swaps and live counts are of no interest here."""

    run_id = await anyio.to_thread.run_sync(lambda: run.run_id)
    async with build_parts(run, config, lambda: time.monotonic() - started, nothing) as parts:
        name = None
        if adapter is not None:
            name = adapter_name(run_id, 0)
            await parts.served.servers.load(name, adapter)
        result = await evaluate(suite, parts.seams, 0, name, emit, nothing)
    return result, sorted(groups, key=lambda tg: tg.position)


def _task_table(groups: list[TaskGroup]) -> Table:
    table = Table()
    for column in ("task", "reward", "F", "N", "I", "turns", "stop", "missed or violated"):
        table.add_column(column, overflow="fold")
    for tg in groups:
        [episode] = tg.episodes
        reward = episode.reward
        if reward is None:
            table.add_row(tg.task_id, "masked", "", "", "", str(episode.turns), str(episode.stop), episode.error)
            continue
        wrong = [verdict.id for verdict in reward.items if verdict.met == (verdict.part == "forbidden")]
        parts = (f"{value:.2f}" for value in (reward.value, reward.F, reward.N, reward.I))
        table.add_row(tg.task_id, *parts, str(episode.turns), str(episode.stop), ", ".join(wrong))
    return table


def _print_result(console: Console, result: Evaluation) -> None:
    console.print(
        f"[bold]reward {result.mean:.3f} ± {result.ci95:.3f}[/] (95 %)   F {result.F:.3f}   N {result.N:.3f}   "
        f"I {result.I:.3f}   {result.episodes} episodes, {result.masked} masked, {result.end_s - result.start_s:.0f} s",
        soft_wrap=True,
    )
