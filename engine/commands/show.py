"""`synth-engine show`: a run, a task, or an episode, for reading."""

from __future__ import annotations

import re
from collections.abc import Iterable

import click
from rich.console import Console
from rich.table import Table

from engine.config.load import load
from engine.errors import ConfigError, RunError
from engine.evals.split import mean_ci95
from engine.packs.pack import load_pack
from engine.report.console import wide_console
from engine.report.gauges import read_gauges
from engine.report.progress import progress_line
from engine.report.words import print_task, print_transcript, run_sentences
from engine.rundir.layout import RunDir, find_run, read_json, read_lines
from engine.stream.integrity import gaps
from engine.stream.reader import iter_headers
from engine.task import Task
from engine.types import EPISODE_ID, GROUP_ID, Episode, EpisodeGroup

_GROUP = re.compile(rf"^{GROUP_ID}$")
EPISODE = re.compile(rf"^{EPISODE_ID}$")
_RECENT = 12


@click.command()
@click.argument("run", required=False)
@click.argument("what", required=False)
@click.option("--dir", "directory", metavar="DIR", default="runs", show_default=True, help="Where runs live.")
def command(run: str | None, what: str | None, directory: str) -> None:
    """Show RUN (default: the latest), or WHAT of it.

    WHAT is an episode (g000178.03, e00040-0012.00), a group (g000178), or the id of a task. With an episode or a group
    alone, the latest run is meant.
    """
    if run is not None and what is None and (_GROUP.match(run) or EPISODE.match(run)):
        run, what = None, run
    found, console = find_run(run, directory), wide_console()
    if what is None:
        _show_run(console, found)
    elif EPISODE.match(what):
        _show_episode(console, found, what)
    elif _GROUP.match(what):
        _show_group(console, _group(found, what))
    else:
        _show_task(console, found, what)


def _group(run: RunDir, group_id: str) -> EpisodeGroup:
    place = run.eval if group_id.startswith("e") else run.trajectories
    groups = [header.group for header in iter_headers(place, []) if header.group.id == group_id]
    if not groups:
        missing = "".join(f"; {told}" for told in _incomplete(run))
        raise ConfigError(
            f"{run.path}: it has no group {group_id}; `synth-engine show {run.path}` lists the newest{missing}"
        )
    return groups[-1]


def _incomplete(run: RunDir) -> list[str]:
    """What the records of the run lack, one sentence each."""
    try:
        return [f"incomplete: {gap.told}" for gap in gaps(run, checksums=True)]
    except RunError as error:
        return [str(error)]


def _show_run(console: Console, run: RunDir) -> None:
    config, manifest = load(run.config).config, read_json(run.manifest) or {}
    summary = read_json(run.summary) or {}
    console.print(f"[bold]{manifest['run_id']}[/]   {run.path}   created {manifest['created_at']}", soft_wrap=True)
    state = run_sentences(summary) if summary else progress_line(read_gauges(run, config))
    console.print(state, markup=False, soft_wrap=True)
    for told in _incomplete(run):
        console.print(told, style="red", markup=False, soft_wrap=True)
    rows = list(read_lines(run.eval / "evaluations.jsonl"))
    if rows:
        table = Table(title="evaluations", title_justify="left")
        for column in ("", "adapter", "reward", "F", "N", "I", "episodes", "masked"):
            table.add_column(column, justify="left" if not column else "right")
        for row in rows:
            cells = (f"v{row['version']}", f"{row['mean']:.3f} ± {row['ci95']:.3f}", *(f"{row[p]:.3f}" for p in "FNI"))
            table.add_row(row["name"], *cells, str(row["episodes"]), str(row["masked"]))
        console.print(table)
    recent = [header.group for header in iter_headers(run.trajectories, [])][-_RECENT:]
    if not recent:
        console.print("No group of the training has been recorded yet, so there is no episode of it to show.")
        return
    table = Table(title="newest groups", title_justify="left")
    for column in ("group", "task", "version", "rewards of its episodes", "mean"):
        table.add_column(column, overflow="fold")
    for group in recent:
        table.add_row(*_group_row(group))
    console.print(table)
    example = recent[-1].episodes[0].id
    console.print(f"One episode:  synth-engine show {run.path} {example}", markup=False, soft_wrap=True)


def _group_row(group: EpisodeGroup) -> list[str]:
    versions = sorted({episode.version for episode in group.episodes})
    rewards = [episode.reward.value for episode in group.episodes if episode.reward is not None]
    each = " ".join("  - " if episode.reward is None else f"{episode.reward.value:.2f}" for episode in group.episodes)
    return [group.id, group.task_id, ", ".join(f"v{v}" for v in versions), each, f"{mean_ci95(rewards)[0]:.2f}"]


def _show_group(console: Console, group: EpisodeGroup) -> None:
    console.print(f"[bold]{group.id}[/]  task {group.task_id}  source {group.source}")
    console.print(episode_table(group.episodes))


def episode_table(episodes: Iterable[Episode]) -> Table:
    """One line each: reward with its parts, how it ended, and who played it."""
    table = Table()
    for column in ("episode", "reward", "F", "N", "I", "turns", "stop", "outcome", "adapter"):
        table.add_column(column)
    for episode in episodes:
        table.add_row(*_episode_row(episode))
    return table


def _episode_row(episode: Episode) -> list[str]:
    reward = episode.reward
    parts = (
        ["masked", "", "", ""] if reward is None else [f"{v:.2f}" for v in (reward.value, reward.F, reward.N, reward.I)]
    )
    rest = [str(episode.turns), str(episode.stop), str(episode.outcome), f"v{episode.version}"]
    return [episode.id, *parts, *rest]


def _show_episode(console: Console, run: RunDir, episode_id: str) -> None:
    group = _group(run, episode_id.rpartition(".")[0])
    episode = next((episode for episode in group.episodes if episode.id == episode_id), None)
    if episode is None:
        raise ConfigError(f"{group.id} has no episode {episode_id}; it has {', '.join(e.id for e in group.episodes)}")
    console.print(f"[bold]{episode.id}[/]  task {episode.task_id}  server {episode.server}  seed {episode.seed}")
    print_transcript(console, episode, _task(run, episode.task_id))


def _task(run: RunDir, task_id: str) -> Task | None:
    return next((task for task in load_pack(run.pack).tasks if task.id == task_id), None)


def _show_task(console: Console, run: RunDir, task_id: str) -> None:
    task = _task(run, task_id)
    if task is None:
        raise ConfigError(f"{run.path}: its pack has no task {task_id!r}; `synth-engine show {run.path}` names some")
    print_task(console, task)
    for place in (run.trajectories, run.eval):
        for header in iter_headers(place, []):
            if header.group.task_id == task_id:
                _show_group(console, header.group)
