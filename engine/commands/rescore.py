"""`synth-engine rescore`: recorded episodes under changed rubrics, without running the policy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import click
import orjson
from rich.table import Table

from engine.audit.check import named
from engine.commands.export import check_place
from engine.config.tree import Config
from engine.errors import ConfigError
from engine.evals.split import mean_ci95
from engine.judging.asked_judge import HOW, AskedJudge, asked_judge
from engine.judging.rescoring import Again, rescored, rescorer
from engine.packs.pack import load_pack
from engine.preflight.manifest import pack_file
from engine.report.console import wide_console
from engine.report.counting import Counted, counting
from engine.rundir.layout import RunDir, find_run
from engine.stream.integrity import RecordsPart, require_complete
from engine.stream.reader import read_group_ids
from engine.task import Task
from engine.trust.opening import JUDGED, SCORED, open_run, trust_option

_EXAMPLES = """\b
synth-engine rescore --pack changed.jsonl                  the latest run, under other rubrics
synth-engine rescore demo --pack changed.jsonl --judge     and whatever its judge has not decided yet
synth-engine rescore received/run --judge --trust          a run from elsewhere, with the judge that it names
"""


@click.command(epilog=_EXAMPLES)
@click.argument("run", required=False)
@click.option("--pack", metavar="FILE", help="The pack with the changed rubrics; without it the run's own.")
@click.option("--judge", is_flag=True, help="Ask the judge about items without a check that it has not decided yet.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of the run; repeatable.")
@click.option(
    "--out", metavar="FILE", type=Path, help="Write one JSON line per episode: id, task, both rewards, items, error."
)
@trust_option
@click.option("--dir", "directory", metavar="DIR", default="runs", show_default=True, help="Where runs live.")
def command(**options: Any) -> None:
    """Score the recorded episodes of RUN (default: the latest) again.

    Items with a check are decided by it. What the judge decided, in the run or when it was asked later, is looked up
    (journal.sqlite, judge.sqlite); an episode with an item that is not there gets no reward, unless --judge asks. The
    recorded stream is not changed: it is what the learner trained on.
    """
    wanted = Wanted(**options)
    if wanted.out is not None:
        check_place(wanted.out)
    found, console = find_run(wanted.run, wanted.directory), wide_console()
    uses = (*SCORED, *JUDGED) if wanted.judge else SCORED
    config = open_run(found, wanted.overrides, uses, trust=wanted.trust)
    require_complete(found, RecordsPart.TRAINING, RecordsPart.EVALUATIONS, checksums=True)
    if wanted.judge and config.scorer.kind != "rubric":
        raise ConfigError(f"--judge has no effect with scorer.kind = {config.scorer.kind!r}; remove it")
    path = pack_file(wanted.pack) if wanted.pack else found.pack
    job = Job(
        run=found,
        config=config,
        tasks={task.id: task for task in load_pack(path).tasks},
        streams=[Sums(name="training", place=found.trajectories), Sums(name="evaluations", place=found.eval)],
    )
    with asked_judge(config) if wanted.judge else nullcontext() as asked, counting(console, "scoring", "groups") as say:
        anyio.run(_score, job, asked, say)
    console.print(_table(f"rescored with {path}", job.streams))
    for told in job.told(asked=wanted.judge):
        console.print(told, style="yellow", markup=False, soft_wrap=True)
    if wanted.out is not None:
        wanted.out.write_bytes(b"".join(line for sums in job.streams for line in sums.lines))


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The options of the command."""

    run: str | None
    pack: str | None
    judge: bool
    overrides: tuple[str, ...]
    out: Path | None
    trust: bool
    directory: str


@dataclass(slots=True, kw_only=True)
class Sums:
    """What came out of one stream."""

    name: str
    place: Path
    before: list[float] = field(default_factory=list)
    after: list[float] = field(default_factory=list)
    changed: int = 0
    gone: int = 0
    """Episodes whose task is not in the pack."""
    undecided: dict[str, str] = field(default_factory=dict)
    """Episodes that the scorer gave no reward, and why."""
    lines: list[bytes] = field(default_factory=list)

    def add(self, again: Again) -> None:
        """Count one episode."""
        episode, reward = again.episode, again.reward
        assert episode.reward is not None
        if reward is None and not again.error:
            self.gone += 1
            return
        row = {"episode": episode.id, "task": episode.task_id, "before": episode.reward.value}
        if reward is None:
            self.undecided[episode.id] = again.error
            row |= {"after": None, "error": again.error}
        else:
            self.before.append(episode.reward.value)
            self.after.append(reward.value)
            self.changed += reward.value != episode.reward.value
            row |= {"after": reward.value, "items": reward.items}
        self.lines.append(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is scored, and how."""

    run: RunDir
    config: Config
    tasks: Mapping[str, Task]
    streams: list[Sums]

    def told(self, *, asked: bool) -> list[str]:
        """What to do about the episodes without a reward."""
        undecided = {id_: error for sums in self.streams for id_, error in sums.undecided.items()}
        if not undecided:
            return []
        count = f"{len(undecided):,} {'episode' if len(undecided) == 1 else 'episodes'}"
        who, first = named(list(undecided)), next(iter(undecided.values()))
        if self.config.scorer.kind != "rubric" or asked:
            return [f"{count} got no reward: {who}", f"the first of them: {first}"]
        remedy = "--judge" if self.config.scorer.judge else f"--judge {HOW}"
        need = "needs" if len(undecided) == 1 else "need"
        return [f"{count} {need} the judge: pass {remedy}", f"they are {who}; the first of them: {first}"]


async def _score(job: Job, asked: AskedJudge | None, say: Counted) -> None:
    total = sum([len(await anyio.to_thread.run_sync(read_group_ids, sums.place)) for sums in job.streams])
    done, last = 0, ""
    async with rescorer(job.run, job.config, asked) as scorer:
        for sums in job.streams:
            async for again in rescored(sums.place, scorer, job.tasks):
                sums.add(again)
                group = again.episode.id.rpartition(".")[0]
                done, last = done + (group != last), group
                say(done, total)


def _table(title: str, streams: Iterable[Sums]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in ("stream", "episodes", "reward recorded", "rescored", "changed", "without a task", "no reward"):
        table.add_column(column, justify="left" if column == "stream" else "right")
    for sums in streams:
        counts = (str(count) for count in (sums.changed, sums.gone, len(sums.undecided)))
        table.add_row(sums.name, str(len(sums.before)), _interval(sums.before), _interval(sums.after), *counts)
    return table


def _interval(values: list[float]) -> str:
    mean, half = mean_ci95(values)
    return f"{mean:.3f} ± {half:.3f}" if values else ""
