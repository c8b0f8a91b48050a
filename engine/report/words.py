"""The last words of `synth-engine run`: the numbers, one improved episode, where everything lies, what to try next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from engine.audit.stream import by_outcome
from engine.report import simulators
from engine.report.html import write_report
from engine.report.summary import summarize
from engine.report.transcript import described, transcript
from engine.rundir.layout import RunDir
from engine.schema.legible import printable
from engine.task import Task
from engine.types import Episode

_STYLES = {"agent": "cyan", "tool": "magenta", "user": "green", "rewar": "bold", "tool ": "red"}


def conclude(console: Console, run: RunDir) -> None:
    """Write summary and report of a finished run, and print what matters of them."""
    summary = summarize(run)
    write_report(run, summary)
    console.print()
    if summary.values["heldout_before"] or summary.values["heldout_after"]:
        console.print(_table(summary.values))
    if summary.values["simulators"]:
        console.print(_simulators(summary.values["simulators"]))
    console.print(run_sentences(summary.values), soft_wrap=True)
    if summary.example is not None:
        early, late = summary.example
        for name, episode in (("before", early), ("after", late)):
            console.print(
                f"\n[bold]One held-out task, {name} training[/]  ({episode.task_id}, adapter v{episode.version})"
            )
            print_transcript(console, episode)
    console.print()
    _next(console, run)


def print_transcript(console: Console, episode: Episode, task: Task | None = None, start: int = 0) -> None:
    """A transcript, one line each, from a turn on; with the words of the rubric where the task is given."""
    for who, text, turn in transcript(episode, task, start):
        number = "" if turn is None else f"@{turn}"
        line = Text(f"  {number:<3} {who:<13} ", style=_STYLES.get(who.strip()[:5], "dim"))
        line.append(printable(text), style="default")
        console.print(line, soft_wrap=True)


def print_task(console: Console, task: Task, *, played: bool = False) -> None:
    """A task, one line each; of one whose transcript follows, what that does not tell."""
    for who, text, _ in described(task, played=played):
        line = Text(f"  {who:<12} ", style="dim")
        console.print(line.append(printable(text), style="default"), soft_wrap=True)


def _table(values: Mapping[str, Any]) -> Table:
    table = Table(title="Held-out reward", title_justify="left")
    for column in ("", "reward", "95 % interval", "F", "N", "I", "episodes"):
        table.add_column(column, justify="left" if not column else "right")
    for name in ("heldout_before", "heldout_after"):
        row = values[name]
        if row is None:
            continue
        label = f"{name.removeprefix('heldout_')} (adapter v{row['version']})"
        cells = (f"{row['mean']:.3f}", f"{row['low']:.3f} to {row['high']:.3f}")
        parts = (f"{row[part]:.3f}" for part in "FNI")
        table.add_row(label, *cells, *parts, str(row["episodes"] - row["masked"]))
    gain = values["heldout_gain"]
    if gain is not None:
        cells = (f"{gain['mean']:+.3f}", f"{gain['low']:+.3f} to {gain['high']:+.3f}")
        table.add_row("gain, paired by task", *cells, "", "", "", str(gain["tasks"]), style="bold")
    return table


def _simulators(values: Mapping[str, Any]) -> Table:
    title = f"Users, tools and judges by language model, over {values['episodes']:,} episodes"
    table = Table(title=title, title_justify="left")
    for column in simulators.HEADER:
        table.add_column(column, justify="right" if column and column != simulators.HEADER.refused else "left")
    for line in simulators.table(values):
        table.add_row(*line)
    return table


def run_sentences(values: Mapping[str, Any]) -> str:
    """What summary.json says of the run as a whole."""
    stale = ", ".join(f"{share:.0%} at {staleness}" for staleness, share in values["staleness"].items())
    dropped = ", ".join(f"{count} {reason}" for reason, count in values["groups_dropped"].items() if count) or "none"
    faults = ", ".join(f"{count:,} {fault}" for fault, count in values["tool_faults"].items())
    broken = values["broken_promises"]
    done = f"{values['steps']} steps, {values['swaps']} hot-swaps, {values['episodes']:,} episodes"
    rate = values["stream_mb"] / max(values["train_wall_s"], 1.0) * 3600
    lines = [
        f"{done}, {values['policy_tokens']:,} policy tokens in {values['wall_s']:.0f} s",
        f"training episodes by outcome: {by_outcome(values['outcomes'])}",
        *(simulators.simulator_sentences(values["simulators"]) if values["simulators"] else ()),
        *([f"faults injected into tool calls: {faults}"] if faults else ()),
        f"stream: {values['stream_mb']:.1f} MB, {rate:.0f} MB an hour of training",
        f"groups dropped: {dropped}" + (f"; trained tokens by staleness: {stale}" if stale else ""),
        values["bottleneck"],
        f"audit: BROKEN {', '.join(broken)} (see synth-engine audit)" if broken else "audit: every promise was kept",
    ]
    return "\n".join(lines)


def _next(console: Console, run: RunDir) -> None:
    where = shlex.quote(_short(run.path))
    merged = shlex.quote(_short(run.path / "merged"))
    console.print(f"Everything lies in {where}: report.html, report.png, summary.json, adapters/", soft_wrap=True)
    commands = {
        f"synth-engine show {where}": "the run, its tasks and episodes",
        f"synth-engine audit {where}": "recompute every invariant from the records",
        f"synth-engine export {where} --merged {merged}": "base and best adapter as one Hugging Face directory",
        f"synth-engine serve --model {merged}": "and serve it",
        f"synth-engine eval --run {where}": "measure its best adapter again",
    }
    width = max(map(len, commands))
    for command, meaning in commands.items():
        console.print(f"  {command:<{width}}   {meaning}", markup=False, soft_wrap=True)


def _short(path: Path) -> str:
    """Relative to the working directory where it lies below it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
