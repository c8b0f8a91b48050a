"""The pass itself: all checks over one read of the stream and the evaluations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

from engine.audit.check import AuditFinding, Invariant, RunRecords
from engine.audit.checkpoints import Checkpoints
from engine.audit.gauges import Budgets
from engine.audit.rewards import Rewards
from engine.audit.steps import Advantages, Staleness, TrainedTwice
from engine.audit.stream import EmitOnce, Lost, MixedVersions, Outcomes
from engine.audit.swaps import Aborted, Paused, Published
from engine.audit.verdicts import Verdicts
from engine.stream.frame import StreamError
from engine.stream.reader import iter_groups
from engine.types import EpisodeGroup


def checks(recorded: RunRecords, opened: ExitStack) -> list[Invariant]:
    """All of them, in the order of the table; `opened` closes what they open."""
    judged = [Verdicts(recorded, opened)] if recorded.config.scorer.judge else []
    return [
        MixedVersions(),
        Paused(recorded),
        Aborted(recorded),
        TrainedTwice(recorded),
        Lost(recorded),
        EmitOnce(recorded),
        Staleness(recorded),
        Advantages(recorded),
        Rewards(recorded),
        *judged,
        Outcomes(recorded),
        Budgets(recorded),
        Published(recorded),
        Checkpoints(recorded),
    ]


def audit(recorded: RunRecords, also: Sequence[Callable[[EpisodeGroup], None]] = ()) -> list[AuditFinding]:
    """Run every check; `also` sees the same groups, so that a summary needs no second read.

    What is damaged in the streams is passed over; a check says so. Raises ConfigError for a damaged copy of the pack,
    RunError for an altered journal."""
    with ExitStack() as opened:
        all_checks = checks(recorded, opened)
        for group in _groups(recorded):
            for check in all_checks:
                check.see(group)
            for see in also:
                see(group)
    return [check.finding() for check in all_checks]


def _groups(recorded: RunRecords) -> Iterator[EpisodeGroup]:
    damage: list[StreamError] = []
    yield from iter_groups(recorded.run.trajectories, damage)
    yield from iter_groups(recorded.run.eval, damage)
