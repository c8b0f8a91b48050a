"""The probe: one episode of each step, scored under its own version, as that was published.

With ``y = log pi_v - log mu`` this is pure mismatch between learner and server: no training lies between. The same
episode scored under the base tells whether the adapter matters at all; if the probe is no better than the base once it
does, the server does not apply the adapter (or the learner does not).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from engine.rundir.layout import RunDir
from learner.forward import policy_logprobs
from learner.loss import LOG_RATIO_BOUND
from learner.model import LoraPolicy, read_adapter_tensors
from learner.rows import TrainedEpisode, collate

LONGEST_TOKENS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Mismatch:
    """Learner against server over the policy tokens of one episode."""

    k3: float
    """mean(e^y - 1 - y) under the episode's own version."""
    abs_mean: float
    """mean |y|, nats."""
    abs_max: float
    """max |y|, nats."""
    base_k3: float
    """The same as `k3` with the adapter off."""


def k3(log_ratio_P: NDArray[np.float64]) -> float:
    """mean(e^x - 1 - x) >= 0: an estimate of KL(mu | pi) with little variance."""
    return float(np.mean(np.expm1(log_ratio_P) - log_ratio_P))


@torch.no_grad()
def probe_mismatch(run: RunDir, policy: LoraPolicy, episodes: Sequence[TrainedEpisode]) -> Mismatch | None:
    """Score the first episode that can be: sampled by one version whose directory is still there, of bounded length."""
    for episode in episodes:
        version = int(episode.version_P[0])
        path = run.adapter(version)
        short = len(episode.ids_T) <= LONGEST_TOKENS
        whole = np.all(episode.version_P == version) and np.all(np.isfinite(episode.behaviour_P))
        if not (short and whole and path.exists()):
            continue
        with policy.holding(read_adapter_tensors(path, policy.lora), str(path)):
            y_P = _log_ratio(policy, episode)
        with policy.model.disable_adapter():
            base_P = _log_ratio(policy, episode)
        absolute_P = np.abs(y_P)
        return Mismatch(
            k3=k3(y_P),
            abs_mean=float(absolute_P.mean()),
            abs_max=float(absolute_P.max()),
            base_k3=k3(base_P),
        )
    return None


def _log_ratio(policy: LoraPolicy, episode: TrainedEpisode) -> NDArray[np.float64]:
    [batch] = collate([episode], len(episode.ids_T))
    logprob_P, _ = policy_logprobs(policy, batch.to(policy.device))
    # Clamped as in the loss: one wild token must not make the metric infinite.
    return np.clip(logprob_P.double().cpu().numpy() - episode.behaviour_P, -LOG_RATIO_BOUND, LOG_RATIO_BOUND)
