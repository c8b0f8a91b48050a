"""Log-probabilities of the policy tokens of a micro-batch under the model as it is now."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import DynamicCache

from learner.head import token_logprobs
from learner.model import LoraPolicy
from learner.rows import MicroBatch


def policy_logprobs(policy: LoraPolicy, batch: MicroBatch) -> tuple[Tensor, Tensor]:
    """``(logprob_P, entropy_P)`` in nats; the first carries the gradient to the adapter.

    The shared opening runs once; its keys and values are then read by every row, and its last hidden state predicts
    each row's first token."""
    rows, width = batch.ids_BT.shape
    opening = batch.prefix_T.numel()
    cache = DynamicCache()
    head_1T = policy.decoder(input_ids=batch.prefix_T[None], past_key_values=cache, use_cache=True).last_hidden_state
    cache.batch_repeat_interleave(rows)
    # A row's token sees the whole opening and, causally, its own row; padding lies to the right of every target.
    visible = torch.ones(width, opening + width, dtype=torch.bool).tril(opening)
    hidden_BT = policy.decoder(
        input_ids=batch.ids_BT,
        position_ids=torch.arange(opening, opening + width)[None],
        attention_mask=visible[None, None],
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    before_BT = torch.cat((head_1T[:, -1:].expand(rows, 1, -1), hidden_BT[:, :-1]), dim=1)
    hidden_P = before_BT[batch.row_P, batch.position_P] / batch.temperature_P.to(hidden_BT.dtype)[:, None]
    return token_logprobs(hidden_P, policy.head, batch.target_P)
