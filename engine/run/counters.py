"""What the engine counts while it runs: incremental, cheap, one metrics row a second (declared in engine.telemetry)."""

from __future__ import annotations

import time
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from engine.rundir.layout import read_lines
from engine.telemetry import engine_metrics as keys
from engine.telemetry.metrics import MetricRow
from engine.types import EpisodeGroup, Outcome, Reward

_RECENT_GROUPS = 64


class RunClock:
    """Seconds since the run's first start, not counting the time between a stop and its resume."""

    def __init__(self, metrics: Path) -> None:
        last = 0.0
        for row in read_lines(metrics):
            last = row[keys.RUN_S]
        self._offset_s = last - time.monotonic()

    def __call__(self) -> float:
        """Now."""
        return time.monotonic() + self._offset_s


@dataclass(slots=True)
class EngineCounters:
    """Totals over this process, and the rewards of the last 64 groups."""

    outcomes: Counter[Outcome] = field(default_factory=Counter)
    masked: int = 0
    turns: int = 0
    sampled_tokens: int = 0
    total_tokens: int = 0
    eval_live: int = 0
    _recent: deque[tuple[Reward, ...]] = field(default_factory=lambda: deque(maxlen=_RECENT_GROUPS))

    def add(self, group: EpisodeGroup) -> None:
        """Count one finished training group."""
        for episode in group.episodes:
            self.outcomes[episode.outcome] += 1
            self.masked += not episode.scored
            self.turns += episode.turns
            if episode.tokens is not None:
                self.sampled_tokens += len(episode.tokens.logprobs)
                self.total_tokens += len(episode.tokens.ids)
        self._recent.append(tuple(episode.reward for episode in group.episodes if episode.reward is not None))

    def evaluating(self, change: int) -> None:
        """An evaluation episode started (+1) or ended (-1)."""
        self.eval_live += change

    def row(self) -> MetricRow:
        """The part of a metrics row that is counted here."""
        rewards = [reward for group in self._recent for reward in group]
        count = max(1, len(rewards))
        return {
            keys.EVAL_LIVE: self.eval_live,
            keys.EPISODES_FINISHED: self.outcomes.total(),
            keys.EPISODES_MASKED: self.masked,
            keys.TURNS_FINISHED: self.turns,
            keys.TOKENS_SAMPLED: self.sampled_tokens,
            keys.TOKENS_TOTAL: self.total_tokens,
            keys.REWARD_MEAN: sum(reward.value for reward in rewards) / count,
            keys.F_MEAN: sum(reward.F for reward in rewards) / count,
            keys.N_MEAN: sum(reward.N for reward in rewards) / count,
            keys.I_MEAN: sum(reward.I for reward in rewards) / count,
            **{key: self.outcomes[outcome] for outcome, key in keys.OUTCOMES.items()},
        }


def process_row() -> MetricRow:
    """CPU seconds and resident bytes of this process; reads /proc, so not on the event loop."""
    process = psutil.Process()
    cpu = process.cpu_times()
    return {keys.CPU_S: cpu.user + cpu.system, keys.RSS: process.memory_info().rss}
