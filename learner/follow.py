"""What every rank but the first does: read the groups that rank 0 read, form the same step, compute a share of it.

Forming is a function of the stream, the configuration and the version alone (learner.forming), so a cursor is all that
a follower has to be told, and it makes the same update as rank 0. It writes nothing.
"""

from __future__ import annotations

from engine.config.tree import Config
from engine.errors import RunError
from engine.rundir.layout import RunDir
from engine.stream.reader import StreamReader
from engine.stream.segment import Cursor
from learner.advantage import Advantage, find_advantage
from learner.checkpoint import latest_checkpoint
from learner.forming import FormingRules, OpenStep
from learner.ranks import Ranks
from learner.schedule import Schedule
from learner.step import GrpoStep

_READ_TIMEOUT_S = 0.2


def follow(run: RunDir, config: Config, ranks: Ranks) -> None:
    """Take part in rank 0's steps until it says stop.

    Raises RankLostError if another rank ends, NotFiniteError and AbandonedError together with all of them, and RunError
    if the files are not those that rank 0 reads."""
    step = ranks.begin()
    checkpoint = latest_checkpoint(run)
    if checkpoint is None or checkpoint.state.counters.step != step:
        raise RunError(f"{run.learner}: rank 0 continues after step {step}, and rank {ranks.rank} cannot find that")
    grpo = GrpoStep.of(config, ranks)
    grpo.resume(checkpoint)
    rules, advantage, schedule = FormingRules.of(config), find_advantage(config.learner.advantage), Schedule.of(config)
    counters, version = checkpoint.state.counters, checkpoint.state.counters.version
    with StreamReader(run.trajectories, cursor=counters.cursor) as reader:
        while (order := ranks.order()) is not None:
            opened = OpenStep(version=version)
            _form(opened, reader, order.cursor, rules, advantage)
            grpo.run(opened.episodes, schedule.at(order.step))
            version += 1


def _form(opened: OpenStep, reader: StreamReader, cursor: Cursor, rules: FormingRules, advantage: Advantage) -> None:
    """Take the groups up to `cursor`, where rank 0 closed the step."""
    while reader.cursor < cursor:
        if (found := reader.next(_READ_TIMEOUT_S)) is not None:
            opened.take(found[0], rules, advantage)
    if reader.cursor != cursor:
        raise RunError(f"{reader.directory}: rank 0 ended a step at {cursor}, and here no group ends there")
