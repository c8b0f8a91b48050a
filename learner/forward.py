"""Log-probabilities of the policy tokens of a pass under the model as it is now."""

from __future__ import annotations

from torch import Tensor

from learner.head import token_logprobs
from learner.model import LoraPolicy
from learner.rows import MicroBatch


def policy_logprobs(policy: LoraPolicy, batch: MicroBatch) -> tuple[Tensor, Tensor]:
    """``(logprob_P, entropy_P)`` in nats; the first carries the gradient to the adapter."""
    hidden_T = policy.decoder(
        input_ids=batch.ids_T[None],
        position_ids=batch.position_T[None],
        use_cache=False,
        layout=batch.layout,
    ).last_hidden_state[0]
    temperature_P = batch.temperature_P.to(hidden_T.dtype)
    return token_logprobs(hidden_T[batch.before_P] / temperature_P[:, None], policy.head, batch.target_P)
