"""Checks on what the learner did with the groups: once each, with the right advantages, never too stale."""

from __future__ import annotations

from collections import Counter
from statistics import fmean, stdev

from engine.audit.check import AuditFinding, RunRecords, named
from engine.stream.integrity import RecordsPart
from engine.types import EpisodeGroup, Source

_STD_EPSILON = 1e-4
_TOLERANCE = 1e-5
_RECOMPUTED = ("group_std", "group_mean")


class TrainedTwice:
    """No group is trained twice, nor trained and dropped; steps and versions grow by one."""

    def __init__(self, recorded: RunRecords) -> None:
        self._recorded = recorded

    def see(self, group: EpisodeGroup) -> None:
        """Nothing: steps.jsonl says it all."""

    def finding(self) -> AuditFinding:
        """Episodes of groups that were used more than once."""
        uses: Counter[str] = Counter()
        episodes: dict[str, int] = {}
        for step in self._recorded.steps:
            uses.update(group.id for group in step.groups)
            episodes.update({group.id: sum(value is not None for value in group.advantages) for group in step.groups})
            uses.update(id_ for ids in step.dropped.values() for id_ in ids)
        twice = [id_ for id_, count in uses.items() if count > 1]
        violations = [f"trained or dropped more than once: {named(twice)}"] if twice else []
        order = [(step.step, step.version) for step in self._recorded.steps]
        if order != [(number, number) for number in range(1, len(order) + 1)]:
            violations.append(f"steps and versions are not 1, 2, 3, ...: {order[:5]} ...")
        violations += [gap.told for gap in self._recorded.gaps if gap.part is RecordsPart.STEPS]
        return AuditFinding(
            name="episodes_trained_twice",
            promise="no episode is trained on twice, and versions only grow",
            checked=f"{len(self._recorded.steps)} steps, {uses.total()} groups",
            violations=violations,
            count=sum(episodes.get(id_, 0) for id_ in twice),
        )


class Advantages:
    """The advantages of every trained group, recomputed from its recorded rewards."""

    def __init__(self, recorded: RunRecords) -> None:
        self._name, self._kind = recorded.config.learner.advantage, recorded.config.learner.kind
        # The simulated learner trains nothing, and says so with zeros.
        self._recomputed = self._kind == "grpo" and self._name in _RECOMPUTED
        self._advantages = {group.id: group.advantages for step in recorded.steps for group in step.groups}
        self._groups = 0
        self._wrong: list[str] = []

    def see(self, group: EpisodeGroup) -> None:
        """Compare one trained group."""
        recorded = self._advantages.get(group.id)
        if group.source is Source.EVAL or recorded is None or not self._recomputed:
            return
        self._groups += 1
        rewards = [None if episode.reward is None else episode.reward.value for episode in group.episodes]
        expected = recomputed([reward for reward in rewards if reward is not None], self._name)
        found = [value for value in recorded if value is not None]
        masked = [value is None for value in recorded] == [reward is None for reward in rewards]
        close = len(found) == len(expected) and all(
            abs(a - b) <= _TOLERANCE * max(1.0, abs(b)) for a, b in zip(found, expected, strict=False)
        )
        if not (masked and close):
            self._wrong.append(group.id)

    def finding(self) -> AuditFinding:
        """Groups whose advantages do not follow from their rewards."""
        nothing = f"none: what a {self._kind} learner makes by {self._name} is not recomputed"
        return AuditFinding(
            name="advantages_wrong",
            promise="recorded advantages follow from recorded rewards",
            checked=f"{self._groups} groups" if self._recomputed else nothing,
            violations=[f"advantages differ in {named(self._wrong)}"] if self._wrong else [],
            count=len(self._wrong),
        )


def recomputed(rewards: list[float], name: str) -> list[float]:
    """Advantages by their formula (docs/learner.md 1.2), written here a second time so that a slip shows."""
    if not rewards:
        return []
    mean = fmean(rewards)
    scale = stdev(rewards) + _STD_EPSILON if name == "group_std" and len(rewards) > 1 else 1.0
    return [(reward - mean) / scale for reward in rewards]


class Staleness:
    """Every trained group was at most max_staleness versions behind, by the versions of its own episodes."""

    def __init__(self, recorded: RunRecords) -> None:
        self._bound = recorded.config.schedule.max_staleness
        self._trained = {group.id: (step.step, group) for step in recorded.steps for group in step.groups}
        self._groups = 0
        self._over: list[str] = []
        self._wrong: list[str] = []

    def see(self, group: EpisodeGroup) -> None:
        """Recompute the staleness of one trained group."""
        if group.source is Source.EVAL or group.id not in self._trained:
            return
        self._groups += 1
        step, trained = self._trained[group.id]
        staleness = step - 1 - group.oldest_version
        if staleness > self._bound:
            self._over.append(f"{group.id} ({staleness})")
        if staleness < 0 or staleness != trained.staleness:
            self._wrong.append(f"{group.id} ({staleness}, recorded {trained.staleness})")

    def finding(self) -> AuditFinding:
        """Groups beyond the bound, or recorded with another staleness."""
        violations = [f"staleness over {self._bound}: {named(self._over)}"] if self._over else []
        if self._wrong:
            violations.append(f"recorded staleness is wrong: {named(self._wrong)}")
        return AuditFinding(
            name="groups_too_stale",
            promise=f"no step trains on a group more than {self._bound} versions behind",
            checked=f"{self._groups} groups",
            violations=violations,
            count=len({*self._over, *self._wrong}),
        )
