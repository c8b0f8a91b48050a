"""Group-relative advantages: how much better an episode was than its siblings.

`R` are the rewards of the n scored episodes of one group; masked episodes are outside mean and deviation. To add one,
write a function with the signature of :class:`Advantage` and register it below, or name it in the configuration as
``package:Object``.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Protocol, cast

from engine.config.plugins import foreign, load_object
from engine.errors import ConfigError

EPSILON = 1e-4
"""Added to the deviation (TRL's value); keeps a near-constant group from exploding."""


class Advantage(Protocol):
    """Turns the rewards of one group into advantages."""

    def __call__(self, rewards: Sequence[float], group_id: str) -> Sequence[float]:
        """Advantages in the order of `rewards`; must be a function of its arguments alone (steps are replayable)."""
        ...


def group_std(rewards: Sequence[float], group_id: str) -> list[float]:
    """``(R - mean) / (std + 1e-4)``, deviation with n - 1: DAPO's, TRL's and verl's form."""
    centred = group_mean(rewards, group_id)
    scale = stdev(rewards) + EPSILON if len(rewards) > 1 else 1.0
    return [value / scale for value in centred]


def group_mean(rewards: Sequence[float], group_id: str) -> list[float]:  # noqa: ARG001 - the signature of Advantage
    """``R - mean`` (Dr.GRPO, arXiv 2503.20783): no division, so judge noise is not amplified."""
    mean = fmean(rewards)
    return [reward - mean for reward in rewards]


ADVANTAGES: dict[str, Advantage] = {"group_std": group_std, "group_mean": group_mean}


def find_advantage(name: str) -> Advantage:
    """A registered advantage, or the callable that `package:Object` names.

    Raises ConfigError if there is no such thing, or a class that cannot be made without arguments."""
    if name in ADVANTAGES:
        return ADVANTAGES[name]
    found = load_object(name, "learner.advantage")
    with foreign(f"learner.advantage = {name!r}: making one, without arguments,"):
        made = found() if isinstance(found, type) else found
    if not callable(made):
        raise ConfigError(f"learner.advantage = {name!r} is not callable: it must be (rewards, group_id) -> advantages")
    return cast("Advantage", made)
