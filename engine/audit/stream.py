"""Checks on the stream alone: one version an episode, every group once, nothing lost, outcomes that agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from engine.audit.check import AuditFinding, RunRecords, named
from engine.stream.integrity import RecordsPart
from engine.telemetry import engine_metrics as keys
from engine.types import EpisodeGroup, Outcome, Source


class MixedVersions:
    """*pinned-version*: all tokens of an episode come from the one version that it was pinned to."""

    def __init__(self) -> None:
        self._episodes = 0
        self._mixed: list[str] = []

    def see(self, group: EpisodeGroup) -> None:
        """Compare the versions of all spans with the pin."""
        for episode in group.episodes:
            self._episodes += 1
            spans = episode.tokens.spans if episode.tokens is not None else ()
            if any(span.version != episode.version for span in spans):
                self._mixed.append(episode.id)

    def finding(self) -> AuditFinding:
        """Episodes with tokens of more than one version."""
        return AuditFinding(
            name="episodes_mixed_versions",
            promise="all policy tokens of an episode come from one adapter version",
            checked=f"{self._episodes} episodes",
            violations=[f"tokens of another version in {named(self._mixed)}"] if self._mixed else [],
            count=len(self._mixed),
        )


class EmitOnce:
    """*emit-once*: every position is in the stream at most once, whole, under its own id."""

    def __init__(self, recorded: RunRecords) -> None:
        self._size = recorded.config.schedule.group_size
        self._seen: Counter[int] = Counter()
        self._wrong: list[str] = []

    def see(self, group: EpisodeGroup) -> None:
        """Count the position and look at the ids; evaluations are outside this rule."""
        if group.source is Source.EVAL:
            return
        self._seen[group.position] += 1
        ids = [episode.id for episode in group.episodes]
        if group.id != f"g{group.position:06d}" or ids != [f"{group.id}.{index:02d}" for index in range(self._size)]:
            self._wrong.append(group.id)

    def finding(self) -> AuditFinding:
        """Groups written twice, or not as the whole group of their position."""
        twice = [f"g{position:06d}" for position, count in self._seen.items() if count > 1]
        violations = [f"written more than once: {named(twice)}"] if twice else []
        if self._wrong:
            violations.append(f"not the {self._size} episodes of their position: {named(self._wrong)}")
        return AuditFinding(
            name="groups_emitted_twice",
            promise="every group is in the stream once, with all its episodes",
            checked=f"{self._seen.total()} groups",
            violations=violations,
            count=len(twice) + len(self._wrong),
        )


class Lost:
    """Nothing that was acknowledged is missing: by engine.stream.integrity, and by the engine's own count."""

    def __init__(self, recorded: RunRecords) -> None:
        self._recorded = recorded
        self._frames = 0

    def see(self, group: EpisodeGroup) -> None:
        """Count what is there."""
        self._frames += group.source is not Source.EVAL

    def finding(self) -> AuditFinding:
        """Episodes of groups that a record knows, and the streams do not have."""
        recorded, written = self._recorded, max((row[keys.GROUPS_WRITTEN] for row in self._recorded.rows), default=0)
        gaps = [gap for gap in recorded.gaps if gap.part is not RecordsPart.STEPS and not gap.twice]
        violations = [gap.told for gap in gaps]
        if written > self._frames:
            violations.append(f"the engine's metrics count {written} groups, the stream has {self._frames}")
        training = [gap for gap in gaps if gap.part is RecordsPart.TRAINING]
        named_groups = {id_ for gap in training for id_ in gap.groups}
        short = max(len(named_groups), written - self._frames, *(gap.count for gap in training), 0)
        measured = max((gap.count for gap in gaps if gap.part is RecordsPart.EVALUATIONS), default=0)
        return AuditFinding(
            name="episodes_lost",
            promise="every acknowledged group can be read back",
            checked=f"{self._frames} groups against 4 counts and {len(recorded.steps)} steps",
            violations=violations,
            count=short * recorded.config.schedule.group_size + measured,
        )


class Outcomes:
    """*trusted-reward*: a reward exactly where the outcome is the agent's doing, and `agent_ok` exactly at reward 1.

    Whatever else ended an episode is said, and the engine counted no episode that the stream does not have."""

    def __init__(self, recorded: RunRecords) -> None:
        self._recorded = recorded
        self._outcomes: Counter[str] = Counter()
        self._trained: Counter[bool] = Counter()
        """Training episodes with and without a reward."""
        self._wrong: list[str] = []
        self._unsaid: list[str] = []

    def see(self, group: EpisodeGroup) -> None:
        """Compare outcome, reward and error."""
        for episode in group.episodes:
            self._outcomes[episode.outcome] += 1
            self._trained[episode.scored] += group.source is not Source.EVAL
            full = episode.reward is not None and episode.reward.value == 1.0
            if episode.scored != episode.outcome.scored or full != (episode.outcome is Outcome.AGENT_OK):
                self._wrong.append(episode.id)
            if not episode.outcome.scored and not episode.error:
                self._unsaid.append(episode.id)

    def finding(self) -> AuditFinding:
        """Episodes whose outcome, reward and error contradict each other, or that were counted and are not there."""
        violations = [f"outcome and reward disagree in {named(self._wrong)}"] if self._wrong else []
        if self._unsaid:
            violations.append(f"no word of what went wrong in {named(self._unsaid)}")
        missing = 0
        counts = ((keys.EPISODES_FINISHED, self._trained.total()), (keys.EPISODES_MASKED, self._trained[False]))
        for key, there in counts:
            counted = int(self._recorded.total(key))
            if counted > there:
                violations.append(f"{key} came to {counted}, the stream has {there}")
                missing = max(missing, counted - there)
        return AuditFinding(
            name="outcomes_contradicted",
            promise="only what the agent did makes a reward, agent_ok means reward 1; what else ended it is said",
            checked=f"{self._outcomes.total()} episodes: {by_outcome(self._outcomes)}",
            violations=violations,
            count=len({*self._wrong, *self._unsaid}) + missing,
        )


def by_outcome(outcomes: Mapping[str, int]) -> str:
    """How many there are of each outcome that there is, in words."""
    return " + ".join(f"{outcomes[outcome]:,} {outcome}" for outcome in Outcome if outcomes.get(outcome)) or "none"
