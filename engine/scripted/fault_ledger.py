"""What was injected, as JSON Lines, so that a chaos test can compare it with what clients saw."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import anyio
import orjson

from engine.errors import ConfigError
from engine.scripted.faults import ServerFault


@dataclass(slots=True, eq=False)
class FaultLedger:
    """Counts injected faults, and appends each to a file where one is given."""

    path: Path | None = None
    counts: dict[str, int] = field(default_factory=dict)
    _lock: anyio.Lock = field(default_factory=anyio.Lock)

    def create(self) -> None:
        """Make the file, so that an empty one means: nothing was injected.

        Raises ConfigError where it cannot be written."""
        if self.path is None:
            return
        try:
            self.path.touch()
        except OSError as error:
            raise ConfigError(f"--ledger {self.path}: {error.strerror}") from None

    async def record(self, fault: ServerFault, *, role: str, route: str, at_s: float) -> None:
        """Append `{"n", "fault", "as", "route", "at_s"}`; it is in the file when this returns.

        A client that gives up while its fault is written is no reason to lose the line."""
        with anyio.CancelScope(shield=True):
            async with self._lock:
                self.counts[fault.value] = self.counts.get(fault.value, 0) + 1
                if self.path is None:
                    return
                number = sum(self.counts.values())
                row = {"n": number, "fault": fault, "as": role, "route": route, "at_s": round(at_s, 6)}
                async with await anyio.open_file(self.path, "ab") as file:
                    await file.write(orjson.dumps(row) + b"\n")
