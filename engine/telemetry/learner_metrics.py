"""The keys of learner/metrics.jsonl, one row a step (docs/learner.md 1.7).

x = log pi_theta - log mu, over all policy tokens of the step, before clipping. They are declared here and filled in
learner.metrics: what exports or draws them cannot import the learner.
"""

from __future__ import annotations

from engine.learnerdir.counters import DropReason
from engine.telemetry.metrics import METRICS, declare
from engine.types import Outcome, StopReason

STEP = declare("learner/step_count", "steps", "Steps trained; the row's number", "total")
LOSS = declare("learner/loss_mean", "1", "Policy loss per policy token")
GRAD_NORM = declare("learner/grad_norm", "1", "Gradient norm before clipping")
UPDATE_NORM = declare("learner/update_norm", "1", "L2 norm of the adapter's change")
MAX_ABS = declare("learner/adapter_max_abs", "1", "Largest absolute value in the adapter")
LR = declare("learner/lr_rate", "1", "Learning rate of the step")
MISMATCH_K3 = declare("learner/mismatch_k3_nats", "nats", "Probe: k3 of learner against server under the same version")
MISMATCH_ABS = declare("learner/mismatch_abs_nats", "nats", "Probe: mean |log pi_v - log mu|")
MISMATCH_ABS_MAX = declare("learner/mismatch_abs_max_nats", "nats", "Probe: max |log pi_v - log mu|")
BASE_K3 = declare("learner/base_k3_nats", "nats", "Probe: k3 of the base, adapter off, against the server")
DRIFT_K3 = declare("learner/drift_k3_nats", "nats", "mean(e^x - 1 - x): mismatch and staleness together")
RATIO_MEAN = declare("learner/ratio_mean", "1", "mean of e^x; near 1 whatever happens, so no health by itself")
RATIO_STD = declare("learner/ratio_std", "1", "Standard deviation of e^x")
RATIO_MAX = declare("learner/ratio_max", "1", "Largest e^x")
ESS = declare("learner/effective_sample_size", "share", "(sum e^x)^2 / (N sum (e^x)^2)")
SEQUENCE_LOW = declare("learner/sequence_ratio_min", "1", "Smallest exp(mean x) of an episode: how far one has drifted")
SEQUENCE_HIGH = declare("learner/sequence_ratio_max", "1", "Largest exp(mean x) of an episode")
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
ADVANTAGE_MEAN = declare("learner/advantage_mean_max", "1", "Largest |mean advantage| of a group; above 1e-5 is a bug")
ADVANTAGE_ABS = declare("learner/advantage_abs_mean", "1", "Mean |advantage| of the episodes")
REWARD = declare("learner/reward_mean", "1", "Mean reward of the scored episodes that trained")
PARTS = {part: declare(f"learner/reward_{part}_mean", "1", f"Mean {part} of those episodes") for part in "FNI"}
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

PER_STALENESS = (ENTROPY, CLIP_LOW, CLIP_HIGH, CAP, DRIFT_K3, RATIO_MEAN, RATIO_STD, RATIO_MAX, ESS)
"""What a row has for the tokens of each staleness too."""

STALENESS_TOKENS = declare(
    "learner/staleness_<versions>_tokens", "tokens", "Policy tokens sampled <versions> versions ago"
)


def _at_staleness(key: str) -> str:
    whole = METRICS[key]
    name, _, unit = key.rpartition("_")
    meaning = f"{whole.meaning}; tokens sampled <versions> versions ago"
    return declare(f"{name}_staleness_<versions>_{unit}", whole.unit, meaning)


AT_STALENESS = {key: _at_staleness(key) for key in PER_STALENESS}
"""The same over the tokens of one staleness alone."""
