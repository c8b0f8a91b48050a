"""The learner's formulas as plain loops over Python floats (IEEE double): slow, obvious, shared by no product code."""

import math
from collections.abc import Sequence


def advantages_std(rewards: Sequence[float]) -> list[float]:
    """(R - mean) / (std + 1e-4) over the rewards given, deviation with n - 1."""
    mean = sum(rewards) / len(rewards)
    variance = sum((reward - mean) ** 2 for reward in rewards) / (len(rewards) - 1)
    return [(reward - mean) / (math.sqrt(variance) + 1e-4) for reward in rewards]


def ppo(
    logprobs: Sequence[float],
    behaviours: Sequence[float],
    advantages: Sequence[float],
    *,
    low: float = 0.2,
    high: float = 0.28,
    cap: float = 3.0,
) -> tuple[float, list[float]]:
    """Token-mean loss and its gradient with respect to each log-probability.

    A token whose behaviour log-probability is not finite counts in the mean and adds nothing."""
    total = 0.0
    gradient: list[float] = []
    for logprob, behaviour, advantage in zip(logprobs, behaviours, advantages, strict=True):
        if not math.isfinite(behaviour):
            gradient.append(0.0)
            continue
        difference = max(-20.0, min(20.0, logprob - behaviour))
        ratio = math.exp(difference)
        capped, clipped = min(ratio, cap), max(1.0 - low, min(1.0 + high, ratio))
        total -= min(capped * advantage, clipped * advantage)
        moves = capped * advantage <= clipped * advantage and ratio <= cap
        moves = (moves or clipped == ratio) and abs(logprob - behaviour) < 20.0
        gradient.append(-ratio * advantage / len(logprobs) if moves else 0.0)
    return total / len(logprobs), gradient


def log_softmax(logits: Sequence[float], target: int) -> tuple[float, float]:
    """Log-probability of `target` and the entropy, from one token's logits."""
    top = max(logits)
    normalizer = top + math.log(sum(math.exp(value - top) for value in logits))
    entropy = -sum(math.exp(value - normalizer) * (value - normalizer) for value in logits)
    return logits[target] - normalizer, entropy
