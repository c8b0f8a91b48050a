"""One fused linear map of the decoder, with what every loaded adapter changes about it.

A batch is sorted by adapter, so that an adapter's rows are one slice. For a small model each adapter keeps a merged
copy of the weights (no extra work a token); for a large one the low-rank pair is applied on top of the shared product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

BASE = 0
"""The load id of the bare model."""


class AdapterSegment(NamedTuple):
    """The rows [start, stop) of a flat batch that use one adapter."""

    load_id: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRank:
    """`B (A x)` with the scale inside B: a `[rank, in]`, b `[out, rank]`."""

    a: Tensor
    b: Tensor


class Projection:
    """`x W^T + bias` for `x` `[N, in]`, where W depends on the adapter of the row."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = weight
        self.bias = bias
        self._merged: dict[int, Tensor] = {}
        self._low_rank: dict[int, LowRank] = {}

    def merged(self, delta: LowRank) -> Tensor:
        """The weight with an adapter folded in, `[out, in]`."""
        return torch.addmm(self.weight, delta.b, delta.a)

    def install(self, load_id: int, change: Tensor | LowRank) -> None:
        """Use `change` (a merged weight or a low-rank pair) for rows of this load id."""
        if isinstance(change, Tensor):
            self._merged[load_id] = change
        else:
            self._low_rank[load_id] = change

    def remove(self, load_id: int) -> None:
        """Forget an adapter; unknown ids are fine (it may not touch this projection)."""
        self._merged.pop(load_id, None)
        self._low_rank.pop(load_id, None)

    def __call__(self, x_N: Tensor, segments: list[AdapterSegment]) -> Tensor:
        """`[N, out]`; the segments cover all rows in order."""
        if len(segments) == 1 and segments[0].load_id not in self._low_rank:
            return linear(x_N, self._merged.get(segments[0].load_id, self.weight), self.bias)
        if not self._merged:
            return self._add_low_rank(x_N, segments)
        y_N = x_N.new_empty(x_N.shape[0], self.weight.shape[0])
        for load_id, start, stop in segments:
            weight = self._merged.get(load_id, self.weight)
            torch.mm(x_N[start:stop], weight.t(), out=y_N[start:stop])
        return y_N if self.bias is None else y_N.add_(self.bias)

    def _add_low_rank(self, x_N: Tensor, segments: list[AdapterSegment]) -> Tensor:
        y_N = linear(x_N, self.weight, self.bias)
        for load_id, start, stop in segments:
            pair = self._low_rank.get(load_id)
            if pair is not None:
                y_N[start:stop].addmm_(linear(x_N[start:stop], pair.a), pair.b.t())
        return y_N
