"""Checks on hot-swaps: no request paused, none aborted, every published adapter still what its hash says."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.audit.check import AuditFinding, RunRecords, named
from engine.learnerdir.adapter import read_published
from engine.serving.models import sha256
from engine.types import Episode, EpisodeGroup

PAUSE_FACTOR = 3.0
"""A paused request needs more than this many times the p99 seconds per token of requests that met no load ..."""
PAUSE_S = 0.5
"""... and at least this much longer in total."""


RESTART_S = 2.0
"""A server that is killed breaks its requests before anybody knows that it restarts: so long before, at most."""


def _windows(swaps: Sequence[Mapping[str, Any]], *events: str) -> dict[str, list[tuple[float, float]]]:
    """Start and end of these events, per server."""
    found: dict[str, list[tuple[float, float]]] = {}
    for row in swaps:
        if row["event"] in events:
            found.setdefault(row["server"], []).append((row["start_s"], row["end_s"]))
    return found


def _meets(start_s: float, end_s: float, windows: Sequence[tuple[float, float]], margin_s: float = 0.0) -> bool:
    """Whether a time overlaps a window, or the `margin_s` before one."""
    return any(start_s < end and end_s > begin - margin_s for begin, end in windows)


class Paused:
    """Requests that stood still while an adapter was loaded; those that met a server's restart waited for that.

    Paused: in flight across a load of its server, with seconds per output token over 3 times the p99 of requests that
    met no load, and that by at least 0.5 s in total. A request without an answer has no such rate: it is counted. Nor
    has a turn that took several attempts, or was moved to another server: Aborted looks at what was broken off."""

    def __init__(self, recorded: RunRecords) -> None:
        self._loads, self._restarts = _windows(recorded.swaps, "load"), _windows(recorded.swaps, "restart")
        self._tried = {row["turn"] for row in recorded.swaps if "turn" in row}
        self._unanswered = 0
        self._servers: list[str] = []
        self._server = array("H")
        self._start_s, self._end_s, self._tokens = array("d"), array("d"), array("I")
        self._turns: list[str] = []

    def see(self, group: EpisodeGroup) -> None:
        """Remember every request: server, start, end, tokens."""
        for episode in group.episodes:
            self._see_episode(episode)

    def _see_episode(self, episode: Episode) -> None:
        if episode.server not in self._servers:
            self._servers.append(episode.server)
        spans = episode.tokens.spans if episode.tokens is not None else ()
        requests = [timing for timing in episode.timings if timing.phase == "policy"]
        if episode.tokens is not None and len(requests) > len(spans):
            last = requests[-1]
            self._unanswered += _meets(last.start_s, last.end_s, self._loads.get(episode.server, ()))
        for timing, span in zip(requests, spans, strict=False):
            turn = f"{episode.id}@{timing.turn:02d}"
            if turn in self._tried:
                continue
            self._server.append(self._servers.index(episode.server))
            self._start_s.append(timing.start_s)
            self._end_s.append(timing.end_s)
            self._tokens.append(span.length)
            self._turns.append(turn)

    def finding(self) -> AuditFinding:
        """Requests over the limit among those in flight across a load."""
        start_s, end_s, tokens = np.array(self._start_s), np.array(self._end_s), np.array(self._tokens)
        across, restarted = np.zeros(len(start_s), bool), np.zeros(len(start_s), bool)
        for index, server in enumerate(self._servers):
            mine = np.array(self._server) == index
            across |= mine & _overlapping(start_s, end_s, self._loads.get(server, ()))
            restarted |= mine & _overlapping(start_s, end_s, self._restarts.get(server, ()))
        across &= ~restarted
        seconds = end_s - start_s
        paused: list[str] = []
        usual = ~across & ~restarted
        if across.any() and usual.any():
            p99 = float(np.quantile(seconds[usual] / tokens[usual], 0.99))
            excess = seconds - PAUSE_FACTOR * p99 * tokens
            paused = [self._turns[index] for index in np.flatnonzero(across & (excess >= PAUSE_S))]
        return AuditFinding(
            name="requests_paused_by_swap",
            promise="no request stands still while an adapter is loaded",
            checked=f"{int(across.sum())} of {len(across)} requests were in flight across a load"
            + (", and none across no load to compare with" if across.any() and not usual.any() else "")
            + (f"; {self._unanswered} across one got no answer" if self._unanswered else ""),
            violations=[f"{len(paused)} paused: {named(paused)}"] if paused else [],
            count=len(paused),
        )


def _overlapping(
    start_s: NDArray[np.float64], end_s: NDArray[np.float64], windows: Sequence[tuple[float, float]]
) -> NDArray[np.bool_]:
    found = np.zeros(len(start_s), bool)
    for begin, end in windows:
        found |= (start_s < end) & (end_s > begin)
    return found


class Aborted:
    """Requests that a server aborted, or broke off in any other way, while it loaded or unloaded an adapter.

    What a server broke off because it restarted was not the swap's doing; nor was what was moved away from one that was
    gone or silent."""

    def __init__(self, recorded: RunRecords) -> None:
        restarts = _windows(recorded.swaps, "restart")
        self._aborts = [
            row
            for row in recorded.swaps
            if row["event"] in ("abort", "retry")
            and not _meets(row["start_s"], row["end_s"], restarts.get(row["server"], ()), RESTART_S)
        ]
        self._windows = _windows(recorded.swaps, "load", "unload")

    def see(self, group: EpisodeGroup) -> None:
        """Nothing: what was broken off is tried again, so only swaps.jsonl knows it."""

    def finding(self) -> AuditFinding:
        """Aborts whose request overlapped a load or an unload of the same server."""
        by_swap = [
            str(row["turn"])
            for row in self._aborts
            if _meets(row["start_s"], row["end_s"], self._windows.get(row["server"], ()))
        ]
        return AuditFinding(
            name="requests_aborted_by_swap",
            promise="no request is aborted by a swap",
            checked=f"{sum(map(len, self._windows.values()))} loads and unloads, {len(self._aborts)} broken requests",
            violations=[f"aborted across a load or unload: {named(by_swap)}"] if by_swap else [],
            count=len(by_swap),
        )


class Published:
    """Every adapter directory holds what its meta.json says, under the version that it names."""

    def __init__(self, recorded: RunRecords) -> None:
        self._recorded = recorded

    def see(self, group: EpisodeGroup) -> None:
        """Nothing: this is about adapters/."""

    def finding(self) -> AuditFinding:
        """Versions whose files do not match."""
        run = self._recorded.run
        wrong = []
        for version in run.versions():
            said = read_published(run, version)
            weights = run.adapter(version) / "adapter_model.safetensors"
            digest = sha256(weights) if weights.exists() else None
            if said is None or digest is None or (said.version, said.sha256) != (version, digest):
                wrong.append(run.adapter(version).name)
        return AuditFinding(
            name="adapters_changed",
            promise="a published adapter is never rewritten",
            checked=f"{len(run.versions())} adapters on disk",
            violations=[f"the content is not what meta.json says: {named(wrong)}"] if wrong else [],
            count=len(wrong),
        )
