"""Check on rewards: the rubric evaluated again over the recorded events gives the recorded rewards.

What a judge decided is taken from the record; that the journal has its verdicts is a check of its own
(engine.audit.verdicts).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import anyio

from engine.audit.check import AuditFinding, RunRecords, named
from engine.core.seams import Scorer, ScoringRecord
from engine.errors import RewardError
from engine.packs.pack import load_pack
from engine.reward.rubric import OpenItem, RubricScorer
from engine.task import Task
from engine.types import Episode, EpisodeGroup, Reward, Verdict


def tasks_of(recorded: RunRecords) -> dict[str, Task]:
    """The run's own copy of its tasks, by id.

    Raises ConfigError if the copy was damaged."""
    return {task.id: task for task in load_pack(recorded.run.pack).tasks}


def _scored(tasks: Mapping[str, Task], episodes: Sequence[Episode]) -> list[Reward | None]:
    """Rewards of recorded episodes by what was recorded; None where the task is gone or an item stays undecided."""

    async def score(episode: Episode) -> Reward | None:
        task = tasks.get(episode.task_id)
        if task is None:
            return None
        try:
            return await _as_recorded(episode).score(ScoringRecord.of(task, episode))
        except RewardError:
            return None

    async def score_all() -> list[Reward | None]:
        return [await score(episode) for episode in episodes]

    return anyio.run(score_all)


class _RecordedJudge:
    """Says what the judge said of an episode when it was scored."""

    def __init__(self, reward: Reward) -> None:
        self._verdicts = [verdict for verdict in reward.items if verdict.by == "judge"]

    async def decide(
        self,
        items: Sequence[OpenItem],  # noqa: ARG002 - the seam's
        record: ScoringRecord,
    ) -> Sequence[Verdict]:
        """See engine.reward.rubric.Judge.

        Raises RewardError where something is met that no event shows."""
        numbers = {event.number for event in record.events}
        if unshown := [verdict.id for verdict in self._verdicts if verdict.met and verdict.evidence not in numbers]:
            raise RewardError(f"met without an event that shows it: {', '.join(unshown)}")
        return self._verdicts


def _as_recorded(episode: Episode) -> Scorer:
    assert episode.reward is not None
    return RubricScorer(_RecordedJudge(episode.reward))


class Rewards:
    """Every recorded reward follows from the recorded events."""

    def __init__(self, recorded: RunRecords) -> None:
        self._kind = recorded.config.scorer.kind
        self._tasks = tasks_of(recorded) if self._kind == "rubric" else {}
        self._episodes = 0
        self._wrong: list[str] = []

    def see(self, group: EpisodeGroup) -> None:
        """Score the group's scored episodes again."""
        episodes = [episode for episode in group.episodes if episode.reward is not None]
        if self._kind != "rubric" or not episodes:
            return
        self._episodes += len(episodes)
        again = _scored(self._tasks, episodes)
        self._wrong += [episode.id for episode, reward in zip(episodes, again, strict=True) if reward != episode.reward]

    def finding(self) -> AuditFinding:
        """Episodes whose reward or breakdown comes out differently."""
        nothing = f"none: rewards of {self._kind} are not recomputed"
        return AuditFinding(
            name="rewards_wrong",
            promise="recorded rewards follow from recorded events",
            checked=f"{self._episodes} episodes" if self._kind == "rubric" else nothing,
            violations=[f"another reward for {named(self._wrong)}"] if self._wrong else [],
            count=len(self._wrong),
        )
