"""How long something takes: the newest times of it; percentiles and histograms are told when somebody asks."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from itertools import pairwise


class Durations:
    """Seconds that something took, the newest `most` of them; to add one costs no more than to append it."""

    __slots__ = ("_newest_s", "count")

    def __init__(self, most: int = 512) -> None:
        self.count = 0
        """All there were."""
        self._newest_s: deque[float] = deque(maxlen=most)

    def __repr__(self) -> str:
        return f"<Durations {self.count}: median {self.quantiles_s(0.5)[0]:.3g} s>"

    def add(self, took_s: float) -> None:
        """One more."""
        self.count += 1
        self._newest_s.append(took_s)

    def quantiles_s(self, *shares: float) -> list[float]:
        """The quantiles of the newest, in seconds; 0 where there is none."""
        ordered = sorted(self._newest_s)
        if not ordered:
            return [0.0] * len(shares)
        return [ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in shares]

    def histogram(self, edges_s: Sequence[float]) -> list[int]:
        """How many of the newest are below each edge and not below the one before; at last, the others."""
        ordered = sorted(self._newest_s)
        below = [0, *(bisect_left(ordered, edge) for edge in edges_s), len(ordered)]
        return [after - before for before, after in pairwise(below)]
