"""The learning rate of a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from engine.config.tree import Config

FINAL_FRACTION = 0.3
"""Of the learning rate, at the last step of a linear schedule."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Warm-up, then constant or linear."""

    lr: float
    shape: Literal["constant", "linear"]
    warmup_steps: int
    steps: int

    @classmethod
    def of(cls, config: Config) -> Schedule:
        """The schedule in a configuration."""
        learner = config.learner
        return cls(lr=learner.lr, shape=learner.schedule, warmup_steps=learner.warmup_steps, steps=config.run.steps)

    def at(self, step: int) -> float:
        """The learning rate of step 1, 2, ..."""
        warm = min(1.0, step / self.warmup_steps) if self.warmup_steps else 1.0
        done = min(1.0, (step - 1) / max(1, self.steps - 1)) if self.shape == "linear" else 0.0
        return self.lr * warm * (1.0 - (1.0 - FINAL_FRACTION) * done)
