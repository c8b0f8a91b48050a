"""A scorer of one's own: the rubric's reward, less for long-windedness. `scorer.kind = "brief_scorer:BriefScorer"`."""

from __future__ import annotations

from dataclasses import replace

from engine.reward.rubric import RubricScorer
from engine.seams import ScoringRecord
from engine.types import EventKind, Reward

FREE_WORDS = 30
A_WORD = 0.005
AT_MOST = 0.3


class BriefScorer:
    """R times a factor: 1 up to 30 words to the user, then 0.005 less for each, at most 0.3."""

    def __init__(self) -> None:
        self._rubric = RubricScorer()

    async def score(self, record: ScoringRecord) -> Reward:
        """Keep the breakdown and its verdicts; `value` alone is what the learner sees.

        Raises RewardError where the rubric leaves an item open: the episode is then unscored, not 0."""
        reward = await self._rubric.score(record)
        return replace(reward, value=reward.value * (1.0 - penalty(record)))


def penalty(record: ScoringRecord) -> float:
    """What the agent's words to the user cost."""
    spoken = (event.text for event in record.events if event.kind in (EventKind.SAID, EventKind.ANSWERED))
    words = sum(len(text.split()) for text in spoken)
    return min(AT_MOST, A_WORD * max(0, words - FREE_WORDS))
