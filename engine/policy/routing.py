"""Where a group's requests go, and what is known of each policy server. Pure: engine.policy.servers does the I/O.

The siblings of a group go to one server, which has their common prefix in its cache, and stay there while it is
healthy. A new group, or one whose server is away, goes to the healthy server with the least load; nothing hops back.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

import anyio

_GROUPS = 4096
"""Groups remembered, the most recently used: nobody says here when a group has ended, and one that asked for nothing
while 4,096 others did has lost its place in the prefix cache anyway."""


@dataclass(slots=True, kw_only=True, eq=False)
class Server:
    """One policy server, as known here."""

    url: str
    healthy: bool = False
    down_s: float | None = None
    """Since when it gets no traffic, on the run's clock."""
    restarted: bool = False
    """Whether it refused a connection or lost its adapters since then; else it was only silent."""
    held: dict[str, Path] = field(default_factory=dict)
    """Adapters that it confirmed."""
    doubt: anyio.Event = field(default_factory=anyio.Event)
    """Set when a request failed as if it had restarted: look now."""
    control: anyio.Lock = field(default_factory=anyio.Lock)
    """One adapter change at a time; the server serializes them anyway."""
    flying: dict[str, anyio.CancelScope] = field(default_factory=dict)
    """Requests of episodes in flight, by request id."""
    asked: set[anyio.CancelScope] = field(default_factory=set)
    """Control requests in flight."""
    orphans: set[str] = field(default_factory=set)
    """Requests that nobody waits for any more, which it could not be told yet."""
    reported: int = 0
    """Requests running and queued there, by its own last word."""

    @property
    def load(self) -> int:
        """What a new group is weighed against."""
        return len(self.flying) + self.reported


class Routing:
    """Remembers which server each group is on."""

    def __init__(self, servers: Sequence[Server]) -> None:
        self._servers = servers
        self._placed: OrderedDict[str, Server] = OrderedDict()

    def route(self, group_id: str) -> Server | None:
        """The server of a group; None while no server is healthy."""
        server = self._placed.get(group_id)
        if server is None or not server.healthy:
            healthy = [server for server in self._servers if server.healthy]
            if not healthy:
                return None
            server = min(healthy, key=lambda server: (server.load, _digest(f"{group_id} {server.url}")))
            self._placed[group_id] = server
            if len(self._placed) > _GROUPS:
                self._placed.popitem(last=False)
        self._placed.move_to_end(group_id)
        return server


def _digest(text: str) -> bytes:
    """Breaks ties: the same in every process, and evenly spread, which a checksum of similar texts is not."""
    return blake2b(text.encode(), digest_size=8).digest()
