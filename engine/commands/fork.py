"""`synth-engine fork`: a recorded episode up to one of its turns, and from there on live."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import click
from rich.console import Console

from engine.commands.show import episode_table
from engine.config.tree import Config
from engine.errors import ConfigError
from engine.evals.split import mean_ci95
from engine.packs.pack import load_pack
from engine.processes.event_loop import UVLOOP
from engine.report.console import wide_console
from engine.report.words import print_transcript
from engine.rundir.layout import RunDir, find_run
from engine.serving.served import fitting_config, served_apart
from engine.trust.opening import PLAYED, open_run, trust_option
from engine.types import EPISODE_ID, Episode
from engine.verify.fork import Fork, begun, find_fork, go_on

_PLACE = re.compile(rf"(?P<episode>{EPISODE_ID})@(?P<turn>\d+)")
_EXAMPLES = """\b
synth-engine fork g000178.03@2               the latest run: that episode, played on from its turn 2
synth-engine fork demo g000178.03@2 -n 16    16 times, each with samples of its own
synth-engine fork g000178.03@2 --say "<question>Which color?</question>"
synth-engine fork e00000-0012.00@1 --version 50
synth-engine fork g000178.03@2 --set endpoints.sim.url=http://127.0.0.1:30000
synth-engine fork received/run g000178.03@2 --trust    a run from elsewhere, with what it names
"""


@click.command(epilog=_EXAMPLES)
@click.argument("run", required=False)
@click.argument("place", required=False, metavar="EPISODE@TURN")
@click.option(
    "-n", "--branches", metavar="N", type=click.IntRange(1, 100), default=1, show_default=True, help="Go on N times."
)
@click.option("--say", metavar="TEXT", help="What the policy says in that turn, tags and all; it goes on after it.")
@click.option(
    "--version",
    metavar="V",
    type=click.IntRange(0),
    help="The adapter that goes on, 0 for the base.  [default: the one that played the episode]",
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of the run; repeatable.")
@trust_option
@click.option("--dir", "directory", metavar="DIR", default="runs", show_default=True, help="Where runs live.")
def command(**options: Any) -> None:
    """Go on live from a turn of a recorded episode of RUN (default: the latest), numbered as `show` does.

    The turns before are executed again from the record. From there on the run's policy is served, as `eval --run` does,
    and plays on with the run's own user, world and scorer; what its language models answered before is not asked again.
    What comes of it is printed: the run is not changed, and nothing of it is ever trained on. Exit code 1 if no branch
    could be scored.
    """
    wanted = Wanted(**options)
    # An episode alone is one of the latest run.
    run, place = (wanted.run, wanted.place) if wanted.place else (None, wanted.run or "")
    found, console = find_run(run, wanted.directory), wide_console()
    episode_id, turn = _turn(place)
    group, episode = find_fork(found, episode_id, turn)
    config = open_run(found, wanted.overrides, PLAYED, trust=wanted.trust)
    if config.policy.launch == "scripted" and wanted.version is not None:
        raise ConfigError("--version has no effect with policy.launch = 'scripted': no model takes part; remove it")
    version = episode.version if wanted.version is None else wanted.version
    adapter = _adapter(found, config, version)
    tasks = {task.id: task for task in load_pack(found.pack).tasks}
    fork = Fork(run=found, config=fitting_config(config, adapter), tasks=tasks, group=group, episode=episode, turn=turn)
    record = replace(anyio.run(begun, fork, wanted.say), version=version)
    told = f"{episode.id}@{turn}: as recorded up to there, then {_who(config, version)}; branches: {wanted.branches}"
    console.print(told, markup=False, soft_wrap=True)
    with served_apart("fork", fork.config, adapter) as live:
        play = partial(go_on, fork, record, live, adapter, wanted.branches)
        branches = anyio.run(play, backend_options={"use_uvloop": UVLOOP})
    _print(console, fork, branches)
    raise SystemExit(0 if any(branch.scored for branch in branches) else 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The options of the command."""

    run: str | None
    place: str | None
    branches: int
    say: str | None
    version: int | None
    overrides: tuple[str, ...]
    trust: bool
    directory: str


def _turn(place: str) -> tuple[str, int]:
    """Episode and turn.

    Raises ConfigError for what names none."""
    if (found := _PLACE.fullmatch(place)) is None:
        raise ConfigError(
            f"{place!r} names no turn of an episode: write EPISODE@TURN, for example g000178.03@2; `synth-engine show` "
            "prints the numbers of turns"
        )
    return found["episode"], int(found["turn"])


def _adapter(run: RunDir, config: Config, version: int) -> Path | None:
    """The directory of the adapter that goes on; None for the base, and where there is no model.

    Raises ConfigError for one that is not there."""
    if config.policy.launch == "scripted" or version == 0:
        return None
    if not run.adapter(version).is_dir():
        there = ", ".join(str(known) for known in run.versions() if known)
        raise ConfigError(
            f"{run.path}: it has no adapter {version} (any more); pass --version 0 (the base), or one of: "
            f"{there or 'no other'}"
        )
    return run.adapter(version)


def _who(config: Config, version: int) -> str:
    if config.policy.launch == "scripted":
        return f"script {config.policy.script}"
    return f"adapter v{version}" if version else "the base"


def _print(console: Console, fork: Fork, branches: list[Episode]) -> None:
    for branch in branches:
        console.print(f"\n{branch.id}", style="bold", markup=False)
        print_transcript(console, branch, fork.tasks[branch.task_id], start=fork.turn)
    console.print()
    console.print(episode_table([fork.episode, *branches]))
    console.print(_summary(fork.episode, branches), style="bold", markup=False, soft_wrap=True)


def _summary(recorded: Episode, branches: list[Episode]) -> str:
    rewards = [branch.reward.value for branch in branches if branch.reward is not None]
    masked = f", {len(branches) - len(rewards)} masked" if len(rewards) < len(branches) else ""
    if not rewards:
        return f"no branch could be scored{masked}"
    assert recorded.reward is not None
    passed = f"{sum(value >= 1 for value in rewards)} of {len(rewards)} branches passed"
    return f"{passed}, mean reward {mean_ci95(rewards)[0]:.2f}{masked}; recorded: {recorded.reward.value:.2f}"
