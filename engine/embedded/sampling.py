"""Sampling parameters, and drawing one token for each row of a batch."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """What one request asks for; defaults are SGLang's. `top_k` -1 = off; temperature 0 = greedy."""

    max_new_tokens: int = 128
    min_new_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = field(default_factory=frozenset)
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    no_stop_trim: bool = False

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken instead of a drawn one."""
        return self.temperature == 0 or self.top_k == 1

    @property
    def truncates(self) -> bool:
        """Whether the support is cut before drawing (the reported log-probability never is)."""
        return self.top_p < 1 or self.top_k > 1 or self.min_p > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Draws:
    """One token a row with its log-probability; `finite` is False where the logits were not numbers."""

    tokens: list[int]
    logprobs: list[float]
    finite: list[bool]


def draw_tokens(logits_SV: Tensor, params: list[SamplingParams], generator: torch.Generator) -> Draws:
    """Draw from softmax(logits / temperature); report log_softmax(logits / temperature) of the drawn token (T = 1
    when greedy by temperature 0), before any cut of the support: the numbers that SGLang reports."""
    if any(p.temperature not in (0.0, 1.0) for p in params):
        temperatures = torch.tensor([p.temperature or 1.0 for p in params])
        logits_SV = logits_SV / temperatures[:, None]
    best_S, best_index_S = logits_SV.max(-1)
    # An inverse-transform draw needs one uniform number a row; Gumbel noise needs one a token and is 20 times slower.
    weights_SV = (logits_SV - best_S[:, None]).exp_()
    total_S = weights_SV.sum(-1)
    for row, p in enumerate(params):
        if p.truncates:
            weights_SV[row] = _truncated(weights_SV[row], p)
    cumulative_SV = weights_SV.cumsum(-1)
    mass_S = cumulative_SV[:, -1]
    uniform_S = torch.rand(len(params), generator=generator)
    # Strictly below the mass, so that the entry found has weight: rounding must not pick a token of probability 0.
    target_S = torch.minimum(uniform_S * mass_S, torch.nextafter(mass_S, torch.zeros(())))
    tokens_S = torch.searchsorted(cumulative_SV, target_S[:, None], right=True)[:, 0].clamp_(max=logits_SV.shape[1] - 1)
    if any(p.greedy for p in params):
        tokens_S = torch.where(torch.tensor([p.greedy for p in params]), best_index_S, tokens_S)
    chosen_S = logits_SV.gather(1, tokens_S[:, None])[:, 0]
    logprobs_S = chosen_S - best_S - total_S.log()
    return Draws(tokens=tokens_S.tolist(), logprobs=logprobs_S.tolist(), finite=logprobs_S.isfinite().tolist())


def _truncated(weights_V: Tensor, params: SamplingParams) -> Tensor:
    """The weights with everything outside top_k, top_p and min_p set to zero."""
    sorted_V, order_V = weights_V.sort(descending=True)
    before_V = sorted_V.cumsum(-1) - sorted_V
    keep_V = before_V < params.top_p * sorted_V.sum()
    if params.top_k > 1:
        keep_V[params.top_k :] = False
    keep_V &= sorted_V >= params.min_p * sorted_V[0]
    return torch.zeros_like(weights_V).index_copy_(0, order_V, sorted_V * keep_V)
