"""The policy loss: clipped PPO on the behaviour ratio, summed per token (docs/learner.md 1.3-1.5).

With ``r = pi_theta / mu`` for each policy token (mu: the log-probability that the server recorded)::

    loss_t = -min(min(r, cap) * A,  clip(r, 1 - low, 1 + high) * A)          loss = sum_t loss_t / N

N counts the policy tokens of the whole step, so any split into micro-batches adds up to the same loss. One ratio
carries staleness and numerical mismatch together; nothing multiplies it by a second correction. Without the cap the
minimum is unclipped for A < 0 and r >> 1, and one mismatched token would dominate the step (TRL's ``delta``).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LOG_RATIO_BOUND = 20.0
"""log r is clamped to this before exp."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """Bounds of the ratio."""

    low: float = 0.2
    """Below 1 (DAPO, the paper)."""
    high: float = 0.28
    """Above 1 (DAPO's clip-higher, the paper)."""
    cap: float = 3.0
    """Of the ratio itself, where the advantage is negative (INTELLECT-2's delta; verl's clip_ratio_c)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenLoss:
    """The loss of P policy tokens and what the clip did to them."""

    loss_P: Tensor
    """[P] in the dtype of the log-probabilities; 0 where mu is not finite."""
    log_ratio_P: Tensor
    """[P] clamped log pi/mu, detached."""
    finite_P: Tensor
    """[P] bool: mu is finite."""
    low_P: Tensor
    """[P] bool: the lower clip acts (r < 1 - low and A < 0)."""
    high_P: Tensor
    """[P] bool: the upper clip acts (r > 1 + high and A > 0)."""
    cap_P: Tensor
    """[P] bool: the cap acts (r > cap and A < 0)."""


def ppo_token_loss(logprob_P: Tensor, behaviour_P: Tensor, advantage_P: Tensor, clip: Clip) -> TokenLoss:
    """Loss of each policy token; all arguments are [P], `logprob_P` (nats) carries the gradient.

    A token whose recorded mu is not finite leaves the loss and is marked in `finite_P`; the caller's N still counts it.
    """
    finite_P = torch.isfinite(behaviour_P)
    anchor_P = torch.where(finite_P, behaviour_P, logprob_P.detach())
    log_ratio_P = (logprob_P - anchor_P).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
    ratio_P = log_ratio_P.exp()
    capped_P = ratio_P.clamp(max=clip.cap) * advantage_P
    clipped_P = ratio_P.clamp(1.0 - clip.low, 1.0 + clip.high) * advantage_P
    loss_P = -torch.minimum(capped_P, clipped_P) * finite_P
    with torch.no_grad():
        gains, loses = advantage_P > 0, advantage_P < 0
        return TokenLoss(
            loss_P=loss_P,
            log_ratio_P=log_ratio_P.detach(),
            finite_P=finite_P,
            low_P=loses & (ratio_P < 1.0 - clip.low),
            high_P=gains & (ratio_P > 1.0 + clip.high),
            cap_P=loses & (ratio_P > clip.cap),
        )
