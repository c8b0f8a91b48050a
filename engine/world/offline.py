"""The offline world: no model, no network; every answer follows from the task."""

from __future__ import annotations

from engine.world.mapped import MappedWorld
from engine.world.offline_user import OfflineUser
from engine.world.store import EntryStore
from engine.world.tools import OfflineSimulator

__all__ = ["OfflineSimulator", "OfflineUser", "OfflineWorld"]


class OfflineWorld(MappedWorld):
    """The mapped world of the offline simulator."""

    def __init__(self, store: EntryStore | None = None) -> None:
        super().__init__(OfflineSimulator(), store)
