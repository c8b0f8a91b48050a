"""Forming steps: which groups train, which are dropped and why, in strict arrival order.

Each group is decided at once and for good, from the group, the configuration and the learner's version alone; so the
cursor is one position in the stream, and replaying a stream forms the same steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.config.plugins import foreign
from engine.config.tree import Config
from engine.errors import RunError
from engine.learnerdir.counters import DropReason
from engine.learnerdir.steps import TrainedGroup
from engine.types import Episode, EpisodeGroup, Outcome, Sampling, Source
from learner.advantage import Advantage
from learner.rows import TrainedEpisode, trained_episode

ZERO_VARIANCE = 1e-6
"""Rewards closer than this make no advantage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FormingRules:
    """What decides about a group."""

    max_staleness: int
    min_group_size: int

    @classmethod
    def of(cls, config: Config) -> FormingRules:
        """The rules in a configuration."""
        return cls(max_staleness=config.schedule.max_staleness, min_group_size=config.min_group_size)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class UsableGroup:
    """A group that trains."""

    group: EpisodeGroup
    advantages: tuple[float | None, ...]
    """In the order of the episodes; None where masked."""
    episodes: tuple[TrainedEpisode, ...]
    staleness: int
    """Learner version - oldest version of any episode."""

    def trained(self) -> TrainedGroup:
        """What steps.jsonl says of it."""
        tokens = sum(len(episode.target_P) for episode in self.episodes)
        return TrainedGroup(id=self.group.id, advantages=self.advantages, staleness=self.staleness, tokens=tokens)


@dataclass(slots=True, kw_only=True)
class OpenStep:
    """The step being formed."""

    version: int
    """The learner's version, on which the staleness of what arrives is measured."""
    read: int = 0
    """Groups taken from the stream since the last step."""
    usable: list[UsableGroup] = field(default_factory=list)
    dropped: dict[DropReason, list[str]] = field(default_factory=dict)
    all_low: int = 0
    """Zero-variance groups with rewards below one half."""
    all_high: int = 0
    """Zero-variance groups with rewards of one half or more."""

    @property
    def episodes(self) -> list[TrainedEpisode]:
        """What the step trains on, in arrival order."""
        return [episode for usable in self.usable for episode in usable.episodes]

    def take(self, group: EpisodeGroup, rules: FormingRules, advantage: Advantage) -> DropReason | None:
        """Decide about the next group of the stream; returns the reason if it is dropped.

        Raises RunError for a group that must not be in the stream (not sampled by plain temperature sampling)."""
        check_trainable(group)
        reason = drop_reason(group, rules, self.version)
        usable = usable_group(group, advantage, self.version) if reason is None else None
        # Counted once it is decided, so that trained + dropped + waiting is what was read, also after an error here.
        self.read += 1
        if usable is not None:
            self.usable.append(usable)
        if reason is not None:
            self.dropped.setdefault(reason, []).append(group.id)
            if reason is DropReason.ZERO_VARIANCE:
                high = scored_rewards(group)[0] >= 0.5
                self.all_high, self.all_low = self.all_high + high, self.all_low + (not high)
        return reason


def check_trainable(group: EpisodeGroup) -> None:
    """Refuse a group whose recorded log-probabilities are not those of the policy (docs/learner.md 1.3).

    Raises RunError that names the group and the setting."""
    if group.source is not Source.POLICY:
        raise RunError(f"{group.id}: source {group.source!s} never reaches GRPO; only the policy's own episodes do")
    plain = Sampling(temperature=group.sampling.temperature, stop=group.sampling.stop)
    if group.sampling != plain or group.sampling.temperature <= 0:
        raise RunError(
            f"{group.id}: sampled with {group.sampling}: its log-probabilities are not the policy's; "
            "train only on top_p 1, top_k off, min_p 0, temperature > 0"
        )


def scored(group: EpisodeGroup) -> list[Episode]:
    """The episodes that have a reward; the others are outside mean, deviation and loss."""
    return [episode for episode in group.episodes if episode.reward is not None]


def scored_rewards(group: EpisodeGroup) -> list[float]:
    """Their rewards."""
    return [episode.reward.value for episode in group.episodes if episode.reward is not None]


def drop_reason(group: EpisodeGroup, rules: FormingRules, version: int) -> DropReason | None:
    """Why a learner at `version` must not train on the group, or None."""
    if version - group.oldest_version > rules.max_staleness:
        return DropReason.STALE
    rewards = scored_rewards(group)
    if len(rewards) < rules.min_group_size:
        judge_failed = any(episode.outcome is Outcome.JUDGE_FAULT for episode in group.episodes)
        return DropReason.UNSCORED if judge_failed else DropReason.FAILED
    if max(rewards) - min(rewards) <= ZERO_VARIANCE:
        return DropReason.ZERO_VARIANCE
    return None


def usable_group(group: EpisodeGroup, advantage: Advantage, version: int) -> UsableGroup:
    """Advantages and tensors' sources of a group that trains.

    Raises ConfigError for whatever the advantage function raises, RunError if it does not return one finite number a
    reward, or the ledger contradicts itself."""
    episodes, rewards = scored(group), scored_rewards(group)
    with foreign(f"learner.advantage, called for {group.id} with rewards {rewards},"):
        values: Sequence[float] = [float(value) for value in advantage(rewards, group.id)]
    if len(values) != len(episodes):
        raise RunError(f"{group.id}: learner.advantage returned {len(values)} values for {len(episodes)} rewards")
    if not all(map(math.isfinite, values)):
        raise RunError(f"{group.id}: learner.advantage returned {values} for rewards {rewards}: not all are finite")
    by_id = {episode.id: value for episode, value in zip(episodes, values, strict=True)}
    temperature = group.sampling.temperature
    trained = [
        trained_episode(episode, group.id, advantage=by_id[episode.id], temperature=temperature) for episode in episodes
    ]
    return UsableGroup(
        group=group,
        advantages=tuple(by_id.get(episode.id) for episode in group.episodes),
        episodes=tuple(episode for episode in trained if episode is not None),
        staleness=version - group.oldest_version,
    )
