"""One row of learner/metrics.jsonl per step, over all policy tokens of the step, before clipping.

x = log pi_theta - log mu. Keys are declared in engine.telemetry.learner_metrics; stop and warning levels are in
learner.health.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.learnerdir.counters import DropReason
from engine.telemetry import learner_metrics as keys
from engine.telemetry.metrics import MetricRow, key_with
from engine.types import Episode, StopReason
from learner.forming import OpenStep
from learner.probe import Mismatch, k3
from learner.step import PolicyTokens, StepResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """Where the time of a step went, seconds."""

    wait_s: float
    read_s: float
    probe_s: float
    step_s: float
    publish_s: float
    """Of the step before."""


def metrics_row(step: int, opened: OpenStep, result: StepResult, mismatch: Mismatch | None, clock: Clock) -> MetricRow:
    """The row of one step."""
    row: MetricRow = {
        keys.STEP: step,
        keys.LOSS: result.loss,
        keys.GRAD_NORM: result.grad_norm,
        keys.UPDATE_NORM: result.update_norm,
        keys.MAX_ABS: result.max_abs,
        keys.LR: result.lr,
        keys.WAIT: clock.wait_s,
        keys.READ: clock.read_s,
        keys.PROBE: clock.probe_s,
        keys.PUBLISH: clock.publish_s,
        keys.STEP_TIME: clock.step_s,
        keys.FORWARD: result.forward_s,
        keys.BACKWARD: result.backward_s,
        keys.OPTIMIZER: result.optimizer_s,
        keys.COMPUTED_TOKENS: result.computed_tokens,
        keys.SPEED: result.computed_tokens / (result.forward_s + result.backward_s),
    }
    if mismatch is not None:
        row |= {
            keys.MISMATCH_K3: mismatch.k3,
            keys.MISMATCH_ABS: mismatch.abs_mean,
            keys.MISMATCH_ABS_MAX: mismatch.abs_max,
            keys.BASE_K3: mismatch.base_k3,
        }
    return row | token_metrics(result.tokens, opened.version) | group_metrics(opened)


def token_metrics(tokens: PolicyTokens, version: int) -> MetricRow:
    """Metrics over the P policy tokens of a step: of all, and of those of each staleness."""
    n, sequence_B = len(tokens.log_ratio_P), np.exp(tokens.mean_log_ratio_B)
    row: MetricRow = {
        keys.POLICY_TOKENS: n,
        keys.NOT_FINITE: n - int(tokens.finite_P.sum()),
        keys.SEQUENCE_LOW: float(sequence_B.min()),
        keys.SEQUENCE_HIGH: float(sequence_B.max()),
        **_chosen_metrics(tokens, np.ones(n, dtype=np.bool_)),
    }
    for staleness, count in staleness_tokens(tokens, version).items():
        row[key_with(keys.STALENESS_TOKENS, versions=staleness)] = count
        chosen = _chosen_metrics(tokens, version - tokens.version_P == staleness)
        row |= {key_with(keys.AT_STALENESS[key], versions=staleness): value for key, value in chosen.items()}
    return row


def _chosen_metrics(tokens: PolicyTokens, chosen_P: NDArray[np.bool_]) -> MetricRow:
    row: MetricRow = {
        keys.ENTROPY: float(tokens.entropy_P[chosen_P].mean()),
        keys.CLIP_LOW: float(tokens.low_P[chosen_P].mean()),
        keys.CLIP_HIGH: float(tokens.high_P[chosen_P].mean()),
        keys.CAP: float(tokens.cap_P[chosen_P].mean()),
    }
    x_P = tokens.log_ratio_P[chosen_P & tokens.finite_P]
    if len(x_P):
        ratio_P = np.exp(x_P)
        row |= {
            keys.DRIFT_K3: k3(x_P),
            keys.RATIO_MEAN: float(ratio_P.mean()),
            keys.RATIO_STD: float(ratio_P.std()),
            keys.RATIO_MAX: float(ratio_P.max()),
            keys.ESS: float(ratio_P.sum() ** 2 / (len(ratio_P) * np.square(ratio_P).sum())),
        }
    return row


def staleness_tokens(tokens: PolicyTokens, version: int) -> dict[int, int]:
    """Trained tokens per staleness (learner version - version that sampled the token)."""
    values, counts = np.unique(version - tokens.version_P, return_counts=True)
    return {int(value): int(count) for value, count in zip(values, counts, strict=True)}


def group_metrics(opened: OpenStep) -> MetricRow:
    """Metrics over the groups of a step, dropped ones included."""
    episodes = [episode for usable in opened.usable for episode in usable.group.episodes if episode.scored]
    advantages = [[value for value in usable.advantages if value is not None] for usable in opened.usable]
    row: MetricRow = {
        keys.ZERO_LOW: opened.all_low / opened.read,
        keys.ZERO_HIGH: opened.all_high / opened.read,
        keys.ADVANTAGE_MEAN: max(abs(float(np.mean(values))) for values in advantages),
        keys.ADVANTAGE_ABS: float(np.mean(np.abs(np.concatenate(advantages)))),
        keys.EPISODES: len(episodes),
        keys.TURNS: float(np.mean([episode.turns for episode in episodes])),
    }
    rewards = [episode.reward for episode in episodes if episode.reward is not None]
    row[keys.REWARD] = float(np.mean([reward.value for reward in rewards]))
    parts = {"F": [r.F for r in rewards], "N": [r.N for r in rewards], "I": [r.I for r in rewards]}
    row |= {keys.PARTS[part]: float(np.mean(values)) for part, values in parts.items()}
    row |= {keys.DROPPED[reason]: len(opened.dropped.get(reason, [])) for reason in DropReason}
    row |= {keys.STOPS[reason]: sum(episode.stop is reason for episode in episodes) for reason in StopReason}
    for outcome, key in keys.LENGTH.items():
        lengths = _policy_lengths([episode for episode in episodes if episode.outcome is outcome])
        row |= {key: float(np.mean(lengths))} if lengths else {}
    return row


def _policy_lengths(episodes: Sequence[Episode]) -> list[int]:
    return [len(episode.tokens.logprobs) for episode in episodes if episode.tokens is not None]
