"""What changed over a run, per adapter version: gathered in one pass over the training stream and the evaluations."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

from engine.evals.split import mean_ci95
from engine.types import Episode, EpisodeGroup, Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Training episodes of one adapter version."""

    version: int
    episodes: int
    reward: float
    ci95: float
    """Half width of the 95 % confidence interval of the mean reward."""
    F: float
    N: float
    I: float  # noqa: E741 - the paper's name
    turns: float
    tokens: float
    """Mean policy tokens of an episode."""


@dataclass(slots=True)
class _Sums:
    rewards: list[float] = field(default_factory=list)
    F: float = 0.0
    N: float = 0.0
    I: float = 0.0  # noqa: E741 - the paper's name
    turns: int = 0
    tokens: int = 0


@dataclass(slots=True)
class Curves:
    """Feed it every group with `see`; then read the attributes."""

    episodes: int = 0
    """Training episodes in the stream."""
    recorded: int = 0
    """All of them, evaluations included."""
    masked: int = 0
    turns: int = 0
    policy_tokens: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    stops: Counter[str] = field(default_factory=Counter)
    evaluated: dict[tuple[int, int], Episode] = field(default_factory=dict)
    """(version, index of the task in the pack) to its evaluation episode, without its tokens."""
    _versions: dict[int, _Sums] = field(default_factory=dict)

    def see(self, group: EpisodeGroup) -> None:
        """Count one group."""
        self.recorded += len(group.episodes)
        for episode in group.episodes:
            if group.source is Source.EVAL:
                # Resumed evaluations are played again: the last one counts.
                self.evaluated[episode.version, group.position] = replace(episode, tokens=None)
            else:
                self._train(episode)

    def _train(self, episode: Episode) -> None:
        tokens = 0 if episode.tokens is None else len(episode.tokens.logprobs)
        self.episodes += 1
        self.turns += episode.turns
        self.policy_tokens += tokens
        self.outcomes[str(episode.outcome)] += 1
        self.stops[str(episode.stop)] += 1
        if episode.reward is None:
            self.masked += 1
            return
        sums = self._versions.setdefault(episode.version, _Sums())
        sums.rewards.append(episode.reward.value)
        sums.F += episode.reward.F
        sums.N += episode.reward.N
        sums.I += episode.reward.I
        sums.turns += episode.turns
        sums.tokens += tokens

    def points(self) -> list[Point]:
        """One per version that has scored episodes, ascending."""
        points = []
        for version, sums in sorted(self._versions.items()):
            count = len(sums.rewards)
            mean, half = mean_ci95(sums.rewards)
            points.append(
                Point(
                    version=version,
                    episodes=count,
                    reward=mean,
                    ci95=half,
                    F=sums.F / count,
                    N=sums.N / count,
                    I=sums.I / count,
                    turns=sums.turns / count,
                    tokens=sums.tokens / count,
                )
            )
        return points

    def heldout(self, before: int, after: int) -> tuple[dict[int, Episode], dict[int, Episode]]:
        """Held-out episodes of two versions by task index: what was played with the first was the held-out split."""
        early = {index: episode for (version, index), episode in self.evaluated.items() if version == before}
        late = {
            index: episode
            for (version, index), episode in self.evaluated.items()
            if version == after and index in early
        }
        return early, late


def paired_gain(before: dict[int, Episode], after: dict[int, Episode]) -> tuple[float, float, int]:
    """Mean gain over the tasks scored both times, the half width of its 95 % interval, and how many those are."""
    gains = [
        late.reward.value - early.reward.value
        for index, early in before.items()
        if (late := after.get(index)) is not None and early.reward is not None and late.reward is not None
    ]
    mean, half = mean_ci95(gains)
    return mean, half, len(gains)


def improved(before: dict[int, Episode], after: dict[int, Episode]) -> tuple[Episode, Episode] | None:
    """The task that improved most, preferring a full reward at the end, then the shortest story; None if none did."""
    pairs = []
    for index, early in sorted(before.items()):
        late = after.get(index)
        if late is None or early.reward is None or late.reward is None or late.reward.value <= early.reward.value:
            continue
        length = early.turns + late.turns
        # A first try that broke a rule or guessed says more than one that did nothing.
        active = min(3, len(early.events))
        pairs.append((late.reward.value, late.reward.value - early.reward.value, active, -length, index))
    if not pairs:
        return None
    index = max(pairs)[-1]
    return before[index], after[index]
