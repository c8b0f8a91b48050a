"""Where a replay is, in one line."""

from __future__ import annotations

from tui.snapshot import Snapshot
from tui.text import clock

_CELLS = 40


def scrub_line(snapshot: Snapshot, speed: float) -> str:
    """Where a replay is between its first and last moment, and how fast it goes."""
    first, last = snapshot.span_s
    done = (snapshot.clock_s - first) / (last - first) if last > first else 0.0
    cells = round(min(max(done, 0.0), 1.0) * _CELLS)
    bar = "━" * cells + "●" + "─" * (_CELLS - cells)
    pace = f"x {speed:g}" if speed else "held: space goes on"
    return f"{clock(snapshot.clock_s)} {bar} {clock(last)}  {pace}   , . 1 s   < > 10 s   + - speed"
