"""Which declared metrics rows have: each must be filled by somebody."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from engine.telemetry import METRICS
from engine.telemetry.metrics import meant

SIMULATORS = ("endpoint.<endpoint>", "tool", "user", "judge", "mapping")
LEARNER = ("learner",)


def unfilled(rows: Iterable[Mapping[str, float]], areas: tuple[str, ...] | None = None) -> set[str]:
    """Declared keys of these areas (None: those of the engine itself) that no row has."""
    filled = {found.metric.key for row in rows for key in row if (found := meant(key)) is not None}
    wanted = {key for key in METRICS if _is_of(key.partition("/")[0], areas)}
    assert wanted
    return wanted - filled


def _is_of(area: str, areas: tuple[str, ...] | None) -> bool:
    return area not in (*SIMULATORS, *LEARNER) if areas is None else area in areas
