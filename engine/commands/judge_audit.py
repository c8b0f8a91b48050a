"""`synth-engine judge audit`: recorded episodes judged several times, against their executable checks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import click
import orjson

from engine.commands.export import check_place
from engine.errors import ConfigError
from engine.judging.agreement import spreads
from engine.judging.asked_judge import AskedJudge, asked_judge
from engine.judging.repeats import Judged, ask_again, sample
from engine.packs.pack import load_pack
from engine.report.console import wide_console
from engine.report.counting import counting
from engine.report.judging import tell
from engine.rundir.layout import find_run
from engine.trust.opening import JUDGED, open_run, trust_option

_EXAMPLES = """\b
synth-engine judge audit                            the judge of the latest run, over its own episodes
synth-engine judge audit demo --repeats 6 --set endpoints.sim.temperature=0.7
synth-engine judge audit demo --set scorer.judge=big --set endpoints.big.url=http://localhost:30000
synth-engine judge audit received/run --trust       a run from elsewhere, with the judge that it names
"""


@click.command("audit", epilog=_EXAMPLES, short_help="Ask the judge about recorded episodes, and compare.")
@click.argument("run", required=False)
@click.option(
    "--episodes", metavar="N", type=click.IntRange(1), default=100, show_default=True, help="Ask about N episodes."
)
@click.option(
    "--repeats", metavar="K", type=click.IntRange(1), default=3, show_default=True, help="Ask about each K times."
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of the run; repeatable.")
@click.option("--out", metavar="FILE", type=Path, help="Write one JSON line per episode: every reward and verdict.")
@trust_option
@click.option("--dir", "directory", metavar="DIR", default="runs", show_default=True, help="Where runs live.")
def command(**options: Any) -> None:
    """Ask the judge to decide all rubric items of scored episodes of RUN (default: the latest), several times.

    Its verdicts are compared with those of the executable checks, and with each other over the repeats. The judge is
    the endpoint that scorer.judge names, in the run or by --set. Episodes are drawn by run.seed. Answers are kept in
    judge.sqlite of the run: what was asked before costs nothing. Nothing else in the run is changed. Exit code 1 if
    nothing could be judged.
    """
    wanted = Wanted(**options)
    if wanted.out is not None:
        check_place(wanted.out)
    run, console = find_run(wanted.run, wanted.directory), wide_console()
    config = open_run(run, wanted.overrides, JUDGED, trust=wanted.trust)
    tasks = {task.id: task for task in load_pack(run.pack).tasks}
    judged, count = sample(run, tasks, wanted.episodes, config.run.seed)
    if not judged:
        raise ConfigError(f"{run.path}: it has no scored episode to be judged")
    with asked_judge(config) as judge:
        console.print(_opening(judge, wanted, len(judged), count), markup=False, soft_wrap=True)
        with counting(console, "judging", "questions") as say:
            asked = anyio.run(ask_again, run, judge, judged, wanted.repeats, say)
    tell(console, run, asked)
    if wanted.out is not None:
        wanted.out.write_bytes(b"".join(map(_line, judged)))
    raise SystemExit(0 if any(one.rewards for one in judged) else 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The options of the command."""

    run: str | None
    episodes: int
    repeats: int
    overrides: tuple[str, ...]
    out: Path | None
    trust: bool
    directory: str


def _opening(judge: AskedJudge, wanted: Wanted, episodes: int, count: int) -> str:
    settings = judge.settings
    who = f"{settings.model or settings.url} at temperature {settings.temperature:g} ({judge.name})"
    return f"{who} judges {episodes:,} of {count:,} scored episodes, {_times(wanted.repeats)} each"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _line(one: Judged) -> bytes:
    episode, spread = one.episode, next(iter(spreads([one])), None)
    row = {
        "episode": episode.id,
        "task": episode.task_id,
        "version": episode.version,
        "recorded": episode.reward,
        "judged": [reward for _, reward in sorted(one.rewards.items())],
        "mean": None if spread is None else spread.mean,
        "deviation": None if spread is None else spread.deviation,
        "failures": list(one.failures.values()),
    }
    return orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)
