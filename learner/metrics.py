"""One row of learner/metrics.jsonl per step, over all policy tokens of the step, before clipping.

x = log pi_theta - log mu. Keys are declared here; stop and warning levels are in learner.health.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.telemetry import METRICS, declare
from engine.types import Episode, Outcome, StopReason
from learner.forming import DropReason, OpenStep
from learner.probe import Mismatch, k3
from learner.step import PolicyTokens, StepResult

Row = dict[str, float | int]

STEP = declare("learner/step_count", "steps", "Steps trained; the row's number")
LOSS = declare("learner/loss_mean", "", "Policy loss per policy token")
GRAD_NORM = declare("learner/grad_norm", "", "Gradient norm before clipping")
UPDATE_NORM = declare("learner/update_norm", "", "L2 norm of the adapter's change")
MAX_ABS = declare("learner/adapter_max_abs", "", "Largest absolute value in the adapter")
LR = declare("learner/lr_rate", "", "Learning rate of the step")
MISMATCH_K3 = declare("learner/mismatch_k3_nats", "nats", "Probe: k3 of learner against server under the same version")
MISMATCH_ABS = declare("learner/mismatch_abs_nats", "nats", "Probe: mean |log pi_v - log mu|")
MISMATCH_ABS_MAX = declare("learner/mismatch_abs_max_nats", "nats", "Probe: max |log pi_v - log mu|")
BASE_K3 = declare("learner/base_k3_nats", "nats", "Probe: k3 of the base, adapter off, against the server")
DRIFT_K3 = declare("learner/drift_k3_nats", "nats", "mean(e^x - 1 - x): mismatch and staleness together")
RATIO_MEAN = declare("learner/ratio_mean", "", "mean of e^x; near 1 whatever happens, so no health by itself")
RATIO_STD = declare("learner/ratio_std", "", "Standard deviation of e^x")
RATIO_MAX = declare("learner/ratio_max", "", "Largest e^x")
ESS = declare("learner/effective_sample_size", "share", "(sum e^x)^2 / (N sum (e^x)^2)")
SEQUENCE_LOW = declare("learner/sequence_ratio_min", "", "Smallest exp(mean x) of an episode: how far one has drifted")
SEQUENCE_HIGH = declare("learner/sequence_ratio_max", "", "Largest exp(mean x) of an episode")
CLIP_LOW = declare("learner/clip_low_share", "share", "Policy tokens on which the lower clip acts")
CLIP_HIGH = declare("learner/clip_high_share", "share", "Policy tokens on which the upper clip acts")
CAP = declare("learner/cap_share", "share", "Policy tokens on which the cap of the ratio acts")
NOT_FINITE = declare(
    "learner/mu_not_finite_tokens", "tokens", "Policy tokens whose recorded log-probability is NaN or inf"
)
ENTROPY = declare("learner/entropy_nats", "nats", "Mean entropy at policy tokens")
ZERO_LOW = declare(
    "learner/zero_variance_low_share", "share", "Of the finished groups: all rewards equal, below one half"
)
ZERO_HIGH = declare(
    "learner/zero_variance_high_share", "share", "Of the finished groups: all rewards equal, one half or more"
)
ADVANTAGE_MEAN = declare("learner/advantage_mean_max", "", "Largest |mean advantage| of a group; above 1e-5 is a bug")
ADVANTAGE_ABS = declare("learner/advantage_abs_mean", "", "Mean |advantage| of the episodes")
REWARD = declare("learner/reward_mean", "", "Mean reward of the scored episodes that trained")
PARTS = {part: declare(f"learner/reward_{part}_mean", "", f"Mean {part} of those episodes") for part in "FNI"}
EPISODES = declare("learner/episodes_count", "episodes", "Scored episodes that trained")
POLICY_TOKENS = declare("learner/policy_tokens", "tokens", "N: policy tokens of the step")
COMPUTED_TOKENS = declare("learner/computed_tokens", "tokens", "Tokens through the decoder, padding included")
TURNS = declare("learner/turns_mean", "turns", "Mean turns of the episodes")
WAIT = declare("learner/wait_s", "s", "Waited for and read groups since the step before")
READ = declare("learner/read_s", "s", "Decided about groups: advantages, ledgers")
FORWARD = declare("learner/forward_s", "s", "Forward passes")
BACKWARD = declare("learner/backward_s", "s", "Backward passes")
OPTIMIZER = declare("learner/optimizer_s", "s", "Update and checks")
PROBE = declare("learner/probe_s", "s", "The probe")
PUBLISH = declare("learner/publish_s", "s", "Checkpoint, rows and adapter of the step before")
STEP_TIME = declare("learner/step_s", "s", "Probe, gradients and update")
SPEED = declare("learner/tokens_per_s", "tokens/s", "Computed tokens per second of forward and backward passes")
LENGTH = {
    outcome: declare(
        f"learner/length_{outcome}_tokens", "tokens", f"Mean policy tokens of an episode that ended {outcome}"
    )
    for outcome in (Outcome.AGENT_OK, Outcome.AGENT_FAIL)
}
STOPS = {
    reason: declare(f"learner/stop_{reason}_count", "episodes", f"Scored episodes that trained, ended by {reason}")
    for reason in StopReason
}
DROPPED = {
    reason: declare(f"learner/dropped_{reason}_groups", "groups", f"Groups dropped as {reason} since the step before")
    for reason in DropReason
}


def staleness_key(staleness: int) -> str:
    """Trained tokens that were sampled `staleness` versions ago."""
    return declare(f"learner/staleness_{staleness}_tokens", "tokens", f"Policy tokens sampled {staleness} versions ago")


def at_staleness(key: str, staleness: int) -> str:
    """A metric over those tokens alone."""
    whole = METRICS[key]
    name, _, unit = key.rpartition("_")
    return declare(
        f"{name}_staleness_{staleness}_{unit}", whole.unit, f"{whole.meaning}; tokens sampled {staleness} versions ago"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """Where the time of a step went, seconds."""

    wait_s: float
    read_s: float
    probe_s: float
    step_s: float
    publish_s: float
    """Of the step before."""


def metrics_row(step: int, opened: OpenStep, result: StepResult, mismatch: Mismatch | None, clock: Clock) -> Row:
    """The row of one step."""
    row: Row = {
        STEP: step,
        LOSS: result.loss,
        GRAD_NORM: result.grad_norm,
        UPDATE_NORM: result.update_norm,
        MAX_ABS: result.max_abs,
        LR: result.lr,
        WAIT: clock.wait_s,
        READ: clock.read_s,
        PROBE: clock.probe_s,
        PUBLISH: clock.publish_s,
        STEP_TIME: clock.step_s,
        FORWARD: result.forward_s,
        BACKWARD: result.backward_s,
        OPTIMIZER: result.optimizer_s,
        COMPUTED_TOKENS: result.computed_tokens,
        SPEED: result.computed_tokens / (result.forward_s + result.backward_s),
    }
    if mismatch is not None:
        row |= {
            MISMATCH_K3: mismatch.k3,
            MISMATCH_ABS: mismatch.abs_mean,
            MISMATCH_ABS_MAX: mismatch.abs_max,
            BASE_K3: mismatch.base_k3,
        }
    return row | token_metrics(result.tokens, opened.version) | group_metrics(opened)


def token_metrics(tokens: PolicyTokens, version: int) -> Row:
    """Metrics over the P policy tokens of a step: of all, and of those of each staleness."""
    n, sequence_B = len(tokens.log_ratio_P), np.exp(tokens.mean_log_ratio_B)
    row: Row = {
        POLICY_TOKENS: n,
        NOT_FINITE: n - int(tokens.finite_P.sum()),
        SEQUENCE_LOW: float(sequence_B.min()),
        SEQUENCE_HIGH: float(sequence_B.max()),
        **_chosen_metrics(tokens, np.ones(n, dtype=np.bool_)),
    }
    for staleness, count in staleness_tokens(tokens, version).items():
        row[staleness_key(staleness)] = count
        chosen = _chosen_metrics(tokens, version - tokens.version_P == staleness)
        row |= {at_staleness(key, staleness): value for key, value in chosen.items()}
    return row


def _chosen_metrics(tokens: PolicyTokens, chosen_P: NDArray[np.bool_]) -> Row:
    row: Row = {
        ENTROPY: float(tokens.entropy_P[chosen_P].mean()),
        CLIP_LOW: float(tokens.low_P[chosen_P].mean()),
        CLIP_HIGH: float(tokens.high_P[chosen_P].mean()),
        CAP: float(tokens.cap_P[chosen_P].mean()),
    }
    x_P = tokens.log_ratio_P[chosen_P & tokens.finite_P]
    if len(x_P):
        ratio_P = np.exp(x_P)
        row |= {
            DRIFT_K3: k3(x_P),
            RATIO_MEAN: float(ratio_P.mean()),
            RATIO_STD: float(ratio_P.std()),
            RATIO_MAX: float(ratio_P.max()),
            ESS: float(ratio_P.sum() ** 2 / (len(ratio_P) * np.square(ratio_P).sum())),
        }
    return row


def staleness_tokens(tokens: PolicyTokens, version: int) -> dict[int, int]:
    """Trained tokens per staleness (learner version - version that sampled the token)."""
    values, counts = np.unique(version - tokens.version_P, return_counts=True)
    return {int(value): int(count) for value, count in zip(values, counts, strict=True)}


def group_metrics(opened: OpenStep) -> Row:
    """Metrics over the groups of a step, dropped ones included."""
    episodes = [episode for usable in opened.usable for episode in usable.tg.episodes if episode.scored]
    advantages = [[value for value in usable.advantages if value is not None] for usable in opened.usable]
    row: Row = {
        ZERO_LOW: opened.all_low / opened.read,
        ZERO_HIGH: opened.all_high / opened.read,
        ADVANTAGE_MEAN: max(abs(float(np.mean(values))) for values in advantages),
        ADVANTAGE_ABS: float(np.mean(np.abs(np.concatenate(advantages)))),
        EPISODES: len(episodes),
        TURNS: float(np.mean([episode.turns for episode in episodes])),
    }
    rewards = [episode.reward for episode in episodes if episode.reward is not None]
    row[REWARD] = float(np.mean([reward.value for reward in rewards]))
    parts = {"F": [r.F for r in rewards], "N": [r.N for r in rewards], "I": [r.I for r in rewards]}
    row |= {PARTS[part]: float(np.mean(values)) for part, values in parts.items()}
    row |= {DROPPED[reason]: len(opened.dropped.get(reason, [])) for reason in DropReason}
    row |= {STOPS[reason]: sum(episode.stop is reason for episode in episodes) for reason in StopReason}
    for outcome, key in LENGTH.items():
        lengths = _policy_lengths([episode for episode in episodes if episode.outcome is outcome])
        row |= {key: float(np.mean(lengths))} if lengths else {}
    return row


def _policy_lengths(episodes: Sequence[Episode]) -> list[int]:
    return [len(episode.tokens.logprobs) for episode in episodes if episode.tokens is not None]
