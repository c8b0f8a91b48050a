"""What became of asking a judge again, in tables and words."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from engine.evals.split import mean_ci95
from engine.judging import agreement as numbers
from engine.judging.repeats import Asked
from engine.report.transcript import mark
from engine.rundir.layout import RunDir
from engine.types import Episode, EventKind, Verdict

_SHOWN = 10
"""Items and episodes that are listed."""
_EXCERPT = 40
"""Characters of what the agent said."""
_BINS = 10
"""Rows of the table over versions."""
_BAR = 24
"""Characters of the longest bar."""


def tell(console: Console, run: RunDir, asked: Asked) -> None:
    """Agreement, the items on which they disagree, variance over the repeats, failures and cost."""
    told = _Told(console=console, run=run, asked=asked)
    _failures(told)
    if any(one.rewards for one in asked.judged):
        _agreement(told)
        _disagreements(told)
        _spread(told)
    _cost(told)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Told:
    """What came out, and where it is told."""

    console: Console
    run: RunDir
    asked: Asked

    def say(self, text: str, style: str | None = None) -> None:
        """One line."""
        self.console.print(text, style=style, markup=False, soft_wrap=True)


def _failures(told: _Told) -> None:
    failures = [reason for one in told.asked.judged for reason in one.failures.values()]
    if failures:
        total = len(failures) + sum(len(one.rewards) for one in told.asked.judged)
        told.say(f"unscored: {len(failures):,} of {total:,}, for the judge failed; the first: {failures[0]}", "yellow")


def _agreement(told: _Told) -> None:
    found = numbers.pairs(told.asked.judged)
    if not found:
        told.say("No item that the judge decided has a check: there is nothing to compare it with.")
        return
    table = Table(title="judge and checks: verdicts by what they say", title_justify="left")
    for column in (
        "",
        "verdicts",
        "both met",
        "check only",
        "judge only",
        "neither",
        "agree",
        "95 % interval",
        "kappa",
    ):
        table.add_column(column, justify="right" if column else "left")
    for part in ("forbidden", "subgoal", "interaction", "all"):
        if mine := [pair for pair in found if part in (pair.open.part, "all")]:
            table.add_row(part, *_agreement_cells(numbers.agreement(mine)))
    told.console.print(table)


def _agreement_cells(of: numbers.Agreement) -> Iterator[str]:
    for count in (of.verdicts, of.both, of.check_only, of.judge_only, of.neither):
        yield f"{count:,}"
    yield f"{of.share:.1%}"
    yield f"{of.low:.1%} to {of.high:.1%}"
    yield "" if of.kappa is None else f"{of.kappa:.2f}"


def _disagreements(told: _Told) -> None:
    wrong = numbers.disagreements(numbers.pairs(told.asked.judged))
    if not wrong:
        return
    table = Table(title="items on which they disagree most, each with an episode", title_justify="left")
    for column in ("item", "disagree", "check says", "judge says", "episode", "text"):
        table.add_column(column, overflow="fold")
    for item in wrong[:_SHOWN]:
        pair = item.first
        cells = (f"{pair.open.part} {pair.open.item.id}", f"{item.differ:,} of {item.verdicts:,}")
        said = (_said(pair.check, pair.judged.episode), _said(pair.judge, pair.judged.episode))
        table.add_row(*map(Text, (*cells, *said, pair.judged.episode.id, pair.open.item.text)))
    told.console.print(table)
    if len(wrong) > _SHOWN:
        told.say(f"and {len(wrong) - _SHOWN:,} more items")
    run = shlex.quote(str(told.run.path))
    told.say(f"Look at one:  synth-engine show {run} {wrong[0].first.judged.episode.id}")


def _said(verdict: Verdict, episode: Episode) -> str:
    """A verdict, and the event that it points at."""
    event = next((event for event in episode.events if event.number == verdict.evidence), None)
    if event is None:
        return mark(verdict)
    what = f"{event.kind} {event.tool}" if event.kind is EventKind.CALLED else f"{event.kind}: {event.text[:_EXCERPT]}"
    return f"{mark(verdict)} (event {event.number}, {what})"


def _spread(told: _Told) -> None:
    found = numbers.spreads(told.asked.judged)
    if not found:
        return
    rows = list(numbers.by_version(found, _BINS))
    means = [mean_ci95([spread.deviation for spread in inside]) for _, inside in rows]
    longest = max(mean for mean, _ in means) or 1.0
    table = Table(title="reward by adapter version; deviation: over the repeats", title_justify="left")
    for column in ("adapter", "episodes", "recorded", "judged", "deviation", ""):
        table.add_column(column, justify="left" if column in ("adapter", "") else "right")
    for (name, inside), (mean, half) in zip(rows, means, strict=True):
        recorded = [spread.judged.episode.reward.value for spread in inside if spread.judged.episode.reward]
        rewards = (f"{mean_ci95(values)[0]:.3f}" for values in (recorded, [spread.mean for spread in inside]))
        bar = "█" * round(_BAR * mean / longest)
        table.add_row(name, f"{len(inside):,}", *rewards, f"{mean:.3f} ± {half:.3f}", bar)
    told.console.print(table)
    changed, total = numbers.wavering(told.asked.judged)
    steady = sum(spread.deviation == 0 for spread in found)
    told.say(
        f"the same reward every time: {steady:,} of {len(found):,} episodes; verdicts that changed over the repeats: "
        f"{changed:,} of {total:,}"
    )
    widest = sorted((spread for spread in found if spread.deviation), key=lambda spread: -spread.deviation)[:_SHOWN]
    if widest:
        told.say("episodes whose reward varies most:")
    for spread in widest:
        values = " ".join(f"{reward.value:.2f}" for _, reward in sorted(spread.judged.rewards.items()))
        told.say(f"  {spread.judged.episode.id}  {spread.mean:.3f} ± {spread.deviation:.3f}  ({values})")


def _cost(told: _Told) -> None:
    cost, tally = told.asked.cost, told.asked.tally
    episodes = len(told.asked.judged)
    refused = ", ".join(f"{count:,} {kind}" for kind, count in tally.refused.most_common()) or "none"
    told.say(
        f"per episode: {cost.calls / episodes:.2f} calls, {cost.prompt_tokens / episodes:,.0f} prompt and "
        f"{cost.completion_tokens / episodes:,.0f} sampled tokens"
    )
    told.say(
        f"{tally.asked:,} questions: {tally.asked - tally.recorded:,} asked now, {tally.recorded:,} answered by "
        f"{told.run.judge.name}; refused replies: {refused}"
    )
