"""The output head, tiled: log-probability and entropy of chosen tokens without ever holding ``[T, V]``.

Only hidden states that predict a policy token come here (often 10-40 % of a row in tool episodes). Each tile sees the
whole vocabulary; logits are recomputed in the backward pass; the head is frozen, so there is no weight gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

TILE_BYTES = 256 * 2**20
"""Upper bound of one tile of logits (float32 at least); the forward pass holds two of them, the backward pass one."""


def tile_rows(vocabulary: int, dtype: torch.dtype) -> int:
    """Tokens per tile for hidden states of that type."""
    return max(1, TILE_BYTES // (vocabulary * _wide(dtype).itemsize))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _logits(hidden_t: Tensor, weight_V: Tensor) -> Tensor:
    """[t, V]; a bfloat16 product is widened, as servers do, before anything is summed over the vocabulary."""
    return (hidden_t @ weight_V.T).to(_wide(hidden_t.dtype))


class _TiledHead(torch.autograd.Function):
    """``hidden_T [T, h], weight_V [V, h], target_T [T] -> (logprob_T, entropy_T)``; entropy carries no gradient."""

    @staticmethod
    def forward(ctx: Any, hidden_T: Tensor, weight_V: Tensor, target_T: Tensor) -> tuple[Tensor, Tensor]:
        logprobs, entropies, normalizers = [], [], []
        tile = tile_rows(weight_V.shape[0], hidden_T.dtype)
        for hidden_t, target_t in zip(hidden_T.split(tile), target_T.split(tile), strict=True):
            logits = _logits(hidden_t, weight_V)
            normalizer = logits.logsumexp(-1)
            logprobs.append(logits.gather(-1, target_t[:, None])[:, 0] - normalizer)
            probability = (logits - normalizer[:, None]).exp_()
            # entropy = log Z - sum_v p_v z_v, in place: no third tile.
            entropies.append(normalizer - probability.mul_(logits).sum(-1))
            normalizers.append(normalizer)
            del logits, probability
        entropy_T = torch.cat(entropies)
        ctx.save_for_backward(hidden_T, weight_V, target_T, torch.cat(normalizers))
        ctx.mark_non_differentiable(entropy_T)
        return torch.cat(logprobs), entropy_T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        hidden_T, weight_V, target_T, normalizer_T = ctx.saved_tensors
        grad_hidden_T = torch.empty_like(hidden_T)
        tile = tile_rows(weight_V.shape[0], hidden_T.dtype)
        for start in range(0, hidden_T.shape[0], tile):
            rows = slice(start, start + tile)
            grad_t = grads[0][rows, None]
            logits = _logits(hidden_T[rows], weight_V)
            # d logprob / d logits = onehot - softmax, in place on the recomputed tile.
            grad_logits = logits.sub_(normalizer_T[rows, None]).exp_().mul_(-grad_t)
            grad_logits.scatter_add_(-1, target_T[rows, None], grad_t)
            torch.mm(grad_logits.to(weight_V.dtype), weight_V, out=grad_hidden_T[rows])
            del logits, grad_logits
        return grad_hidden_T, None, None


def token_logprobs(hidden_T: Tensor, weight_V: Tensor, target_T: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of each target under ``softmax(hidden @ weight.T)``, and the entropy there (nats, detached).

    `hidden_T` [T, h] is already divided by the sampling temperature; `weight_V` [V, h] is frozen; `target_T` [T] int64.
    """
    logprob_T, entropy_T = _TiledHead.apply(hidden_T, weight_V.detach(), target_T)
    return logprob_T, entropy_T
