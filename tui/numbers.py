"""Figures that screens show, computed from the rows of a snapshot."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from itertools import pairwise, takewhile

from engine.telemetry import engine_metrics as keys
from engine.telemetry import learner_metrics as learner
from engine.telemetry import simulator_metrics as simulators
from engine.telemetry.metrics import meant
from tui.snapshot import Snapshot

Rows = Sequence[Mapping[str, float]]
Points = list[tuple[float, float]]

_WINDOW_S = 15.0
"""Rates are taken over this much of the run's clock."""


def newest_row(snapshot: Snapshot) -> Mapping[str, float]:
    """The newest row of the engine, empty before the first."""
    return finite(snapshot.engine[-1]) if snapshot.engine else {}


def finite(row: Mapping[str, float | None]) -> Mapping[str, float]:
    """Without the values that are no numbers: JSON has null for them."""
    return {key: value for key, value in row.items() if value is not None}


def rate(rows: Rows, key: str) -> float:
    """Growth of a count per second, over the last 15 s."""
    if len(rows) < 2:
        return 0.0
    last = rows[-1]
    # From the end: it is asked for every figure, and there may be many rows.
    recent = takewhile(lambda row: row[keys.RUN_S] >= last[keys.RUN_S] - _WINDOW_S, reversed(rows))
    first = deque(recent, maxlen=1)[0]
    return _slope(first, last, key)


def rates(rows: Rows, key: str) -> Points:
    """That growth from row to row, by the run's clock."""
    return [(late[keys.RUN_S], _slope(early, late, key)) for early, late in pairwise(rows)]


def share_points(rows: Rows, part: str, whole: str) -> Points:
    """What grew of `whole` from row to row was `part` by so much, by the run's clock."""
    grown = zip(rates(rows, part), rates(rows, whole), strict=True)
    return [(x, min(1.0, some / everything)) for (x, some), (_, everything) in grown if everything]


def batches(row: Mapping[str, float]) -> dict[int, int]:
    """Batches that went to all endpoints, by size up to the next power of two (telemetry.simulator_metrics)."""
    found: Counter[int] = Counter()
    for key, value in row.items():
        if (sized := meant(key)) is not None and sized.metric.key == simulators.BATCHES:
            found[int(sized.parts["size"])] += round(value)
    return dict(sorted(found.items()))


def _slope(early: Mapping[str, float], late: Mapping[str, float], key: str) -> float:
    seconds = late[keys.RUN_S] - early[keys.RUN_S]
    # A restarted engine counts from zero again.
    return max(0.0, late.get(key, 0.0) - early.get(key, 0.0)) / seconds if seconds > 0 else 0.0


def series(rows: Rows, x: str, y: str) -> Points:
    """The values of one key over another, where both are there."""
    return [(row[x], row[y]) for row in rows if x in row and y in row]


def staleness_shares(row: Mapping[str, float]) -> dict[int, float]:
    """Share of a step's trained tokens by how many versions ago they were sampled."""
    tokens = {
        int(found.parts["versions"]): value
        for key, value in finite(row).items()
        if (found := meant(key)) is not None and found.metric.key == learner.STALENESS_TOKENS
    }
    whole = sum(tokens.values())
    return {number: value / whole for number, value in sorted(tokens.items())} if whole else {}


def live(snapshot: Snapshot) -> int:
    """Episodes in flight."""
    return sum(number for phase, number in snapshot.phases.items() if phase != "done")


def untrained(row: Mapping[str, float]) -> int:
    """Groups that the stream holds and the learner has not taken yet."""
    taken = row.get(keys.GROUPS_TRAINED, 0) + row.get(keys.GROUPS_DROPPED, 0)
    return max(0, round(row.get(keys.GROUPS_WRITTEN, 0) - taken))
