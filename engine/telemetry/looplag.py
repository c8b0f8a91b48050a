"""The loop-lag probe: how late a sleeping task wakes up (invariant *no-block*)."""

from __future__ import annotations

from collections import deque

import anyio

_TICK_S = 0.02
_WINDOW = 3000


class LoopLag:
    """Wakes every 20 ms and remembers the last minute of delays."""

    def __init__(self) -> None:
        self._lag_s: deque[float] = deque(maxlen=_WINDOW)

    async def run(self) -> None:
        """Probe until cancelled."""
        while True:
            due = anyio.current_time() + _TICK_S
            await anyio.sleep(_TICK_S)
            self._lag_s.append(max(0.0, anyio.current_time() - due))

    def quantile_s(self, q: float) -> float:
        """The q-quantile of the last minute, in seconds; 0 before the first tick."""
        ordered = sorted(self._lag_s)
        return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else 0.0
