"""Advantages of one's own: `learner.advantage = "advantages:leave_one_out"`, or `"advantages:ranks"`."""

from __future__ import annotations

from collections.abc import Sequence


def leave_one_out(rewards: Sequence[float], group_id: str) -> list[float]:  # noqa: ARG001 - an advantage is given both
    """RLOO (arXiv 2402.14740): each reward against the mean of the others; no division by the deviation."""
    total, others = sum(rewards), len(rewards) - 1
    return [reward - (total - reward) / others for reward in rewards]


def ranks(rewards: Sequence[float], group_id: str) -> list[float]:  # noqa: ARG001 - an advantage is given both
    """From -1 for the worst to 1 for the best by rank alone; equal rewards share one. An outlier counts no more."""
    others = len(rewards) - 1
    below = [sum(other < reward for other in rewards) for reward in rewards]
    above = [sum(other > reward for other in rewards) for reward in rewards]
    return [(lower - higher) / others for lower, higher in zip(below, above, strict=True)]
