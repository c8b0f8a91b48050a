"""The control of `bench tiny`: advantages with the right values on the wrong episodes."""

from __future__ import annotations

import random
from collections.abc import Sequence

from learner.advantage import group_std


def shuffled(rewards: Sequence[float], group_id: str) -> list[float]:
    """group_std, shuffled inside the group: same sizes, same sum, no information."""
    advantages = group_std(rewards, group_id)
    random.Random(f"shuffled:{group_id}").shuffle(advantages)
    return advantages
