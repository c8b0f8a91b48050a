"""Check on judges: what one decided is what the journal says that it answered. Nobody is asked again."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from anyio.from_thread import start_blocking_portal

from engine.audit.check import AuditFinding, RunRecords, named
from engine.audit.rewards import tasks_of
from engine.core.seams import ScoringRecord
from engine.errors import RewardError
from engine.llm.asking import JournaledAsker
from engine.llm.journal import read_journal
from engine.reward.judges import judge_of
from engine.reward.rubric import Judge, open_items
from engine.types import Episode, EpisodeGroup, Verdict


class Verdicts:
    """Every verdict of a judge has its answer in the journal; for runs whose scorer has a judge."""

    def __init__(self, recorded: RunRecords, opened: ExitStack) -> None:
        self._recorded, self._opened = recorded, opened
        self._episodes = 0
        self._missing: list[str] = []
        self._other: list[str] = []

    def see(self, group: EpisodeGroup) -> None:
        """Look up the answers for the group's judged episodes.

        Raises ConfigError for a journal that is none, RunError for one that was altered."""
        judged = [episode for episode in group.episodes if decided_by_judge(episode)]
        if not judged:
            return
        if not self._episodes:
            self._begin()
        self._episodes += len(judged)
        for episode, verdicts in zip(judged, self._portal.call(self._answered, judged), strict=True):
            if verdicts is None:
                self._missing.append(episode.id)
            elif verdicts != decided_by_judge(episode):
                self._other.append(episode.id)

    def _begin(self) -> None:
        """Open what is needed; most runs have no judged episode."""
        self._tasks = tasks_of(self._recorded)
        self._portal = self._opened.enter_context(start_blocking_portal())
        self._judge: Judge | None = None
        path = self._recorded.run.journal
        if path.exists():
            journal = self._opened.enter_context(self._portal.wrap_async_context_manager(read_journal(path)))
            self._judge = judge_of(self._recorded.config, JournaledAsker(journal, None))

    async def _answered(self, episodes: Sequence[Episode]) -> list[list[Verdict] | None]:
        return [await self._verdicts(episode) for episode in episodes]

    async def _verdicts(self, episode: Episode) -> list[Verdict] | None:
        task = self._tasks.get(episode.task_id)
        if task is None or self._judge is None:
            return None
        try:
            return list(await self._judge.decide(open_items(task.rubric), ScoringRecord.of(task, episode)))
        except RewardError:
            return None

    def finding(self) -> AuditFinding:
        """Episodes with a verdict that the journal lacks, or that it has otherwise."""
        violations = []
        if self._missing:
            violations.append(f"the journal does not answer for {named(self._missing)}")
        if self._other:
            violations.append(f"the journal has other verdicts on {named(self._other)}")
        return AuditFinding(
            name="verdicts_wrong",
            promise="what the judge decided is in the journal",
            checked=f"{self._episodes} episodes",
            violations=violations,
            count=len(self._missing) + len(self._other),
        )


def decided_by_judge(episode: Episode) -> list[Verdict]:
    """The recorded verdicts of a judge, in the order of the rubric."""
    return [] if episode.reward is None else [verdict for verdict in episode.reward.items if verdict.by == "judge"]
