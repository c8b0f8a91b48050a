"""The loop-lag probe: how late a sleeping task wakes up (invariant *no-block*)."""

from __future__ import annotations

import anyio

from engine.telemetry.durations import Durations

_TICK_S = 0.02
_MINUTE = 3000
LAG_EDGES_S = (0.002, 0.005, 0.02, 0.1)
"""Of the histogram that is shown of the last minute."""


class LoopLag:
    """Wakes every 20 ms and remembers the last minute of delays."""

    def __init__(self) -> None:
        self.delays = Durations(_MINUTE)

    async def run(self) -> None:
        """Probe until cancelled."""
        while True:
            due = anyio.current_time() + _TICK_S
            await anyio.sleep(_TICK_S)
            self.delays.add(max(0.0, anyio.current_time() - due))
