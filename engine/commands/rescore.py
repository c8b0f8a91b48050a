"""`synth-engine rescore`: recorded episodes under changed rubrics, without running a model."""

from __future__ import annotations

from pathlib import Path

import click
import orjson
from rich.table import Table

from engine.audit.rewards import score_again
from engine.commands.export import check_place
from engine.evals.split import mean_ci95
from engine.manifest import pack_file
from engine.report.console import wide_console
from engine.reward.rubric import RubricScorer
from engine.rundir import find_run
from engine.stream.reader import iter_groups
from engine.types import Reward
from engine.world.tasks import load_pack


@click.command()
@click.argument("run", required=False)
@click.option("--pack", metavar="FILE", help="The pack with the changed rubrics; without it the run's own.")
@click.option(
    "--out", metavar="FILE", type=Path, help="Write one JSON line per episode: id, task, both rewards, items."
)
@click.option("--dir", "directory", metavar="DIR", default="runs", show_default=True, help="Where runs live.")
def command(run: str | None, pack: str | None, out: Path | None, directory: str) -> None:
    """Score the recorded episodes of RUN (default: the latest) again.

    The recorded stream is not changed: it is what the learner trained on.
    """
    if out is not None:
        check_place(out)
    found = find_run(run, directory)
    path = pack_file(pack) if pack else found.pack
    tasks, scorer = {task.id: task for task in load_pack(path).tasks}, RubricScorer()
    streams = {"training": found.trajectories, "evaluations": found.eval}
    table = Table(title=f"rescored with {path}", title_justify="left")
    for column in ("stream", "episodes", "reward recorded", "rescored", "changed", "without a task"):
        table.add_column(column, justify="left" if column == "stream" else "right")
    lines: list[bytes] = []
    for name, place in streams.items():
        before: list[float] = []
        after: list[float] = []
        changed = gone = 0
        for tg in iter_groups(place):
            episodes = [episode for episode in tg.episodes if episode.reward is not None]
            for episode, reward in zip(episodes, score_again(scorer, tasks, episodes), strict=True):
                assert episode.reward is not None
                if reward is None:
                    gone += 1
                    continue
                before.append(episode.reward.value)
                after.append(reward.value)
                changed += reward.value != episode.reward.value
                lines.append(_line(episode.id, episode.task_id, episode.reward, reward))
        table.add_row(name, str(len(before)), _interval(before), _interval(after), str(changed), str(gone))
    wide_console().print(table)
    if out is not None:
        out.write_bytes(b"".join(lines))


def _line(episode_id: str, task_id: str, before: Reward, after: Reward) -> bytes:
    row = {"episode": episode_id, "task": task_id, "before": before.value, "after": after.value, "items": after.items}
    return orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)


def _interval(values: list[float]) -> str:
    mean, half = mean_ci95(values)
    return f"{mean:.3f} ± {half:.3f}" if values else ""
