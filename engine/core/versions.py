"""Which adapter versions the servers hold, which one new episodes get, and who still needs an old one.

A pure registry: every method is a synchronous transition. engine.run.swap does the I/O that it asks for: load
the new version on every server first, then flip, then unload the old one when its last lease has ended. A running
episode is never paused, aborted or moved for it (invariant *pinned-version*).
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Versions:
    """Adapter versions and their leases; `slots` is how many the servers may hold."""

    slots: int
    current: int = -1
    """The version that new episodes are pinned to; -1 before the first flip."""
    announced: int = -1
    """The newest published version."""
    _leases: dict[int, int] = field(default_factory=dict)
    """Loaded versions and how many episodes hold each."""

    def __repr__(self) -> str:
        leases = ", ".join(f"v{version}: {count}" for version, count in self._leases.items())
        return f"<Versions current v{self.current}, announced v{self.announced} | leases {leases}>"

    @property
    def loaded(self) -> tuple[int, ...]:
        """Versions on the servers."""
        return tuple(self._leases)

    def next_load(self) -> int | None:
        """The version to load now: the newest one, if it is not loaded and a slot is free."""
        if self.announced <= self.current or len(self._leases) >= self.slots:
            return None
        return self.announced

    def flip(self, version: int) -> None:
        """`version` is loaded on every server: new episodes get it."""
        self._leases.setdefault(version, 0)
        self.current = max(self.current, version)

    def lease(self, version: int | None = None) -> int:
        """Hold a version (the current one) until `release`."""
        held = self.current if version is None else version
        self._leases[held] += 1
        return held

    def release(self, version: int) -> None:
        """End one lease."""
        self._leases[version] -= 1

    def unloadable(self) -> list[int]:
        """Versions that are neither current nor leased."""
        return [version for version, count in self._leases.items() if count == 0 and version != self.current]

    def forget(self, version: int) -> None:
        """`version` is about to be unloaded: nothing may lease it again."""
        del self._leases[version]
