"""When this process has to end: SIGTERM, SIGINT, or the death of the process that started it."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType

GRACE_S = 30.0
"""How long a step in progress may go on after a stop was asked for."""
_POLL_S = 0.5


class Lifetime:
    """Says whether to stop. The first signal asks; a second one ends the process at once."""

    def __init__(self) -> None:
        self._asked_s: float | None = None

    def install(self, parent_pid: int | None) -> None:
        """Catch signals and, if `parent_pid` is given, watch that process (call it from the main thread)."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        if parent_pid is not None:
            # Nobody waits for it: it looks as long as the process lives, and has nothing to leave behind.
            threading.Thread(target=self._watch, args=(parent_pid,), name="parent-watch", daemon=True).start()

    def install_rank(self, *, leads: bool) -> None:
        """The same for one of several ranks, which torchrun started and signals: rank 0 alone decides when to stop.

        If torchrun is gone, it was killed, and so is this process: others may already be starting in its place."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal if leads else signal.SIG_IGN)
        # The same, and it is the one that ends the process.
        threading.Thread(target=_end_with, args=(os.getppid(),), name="parent-watch", daemon=True).start()

    @property
    def stopping(self) -> bool:
        """Whether a stop was asked for."""
        return self._asked_s is not None

    def must_abandon(self) -> bool:
        """Whether a step in progress has had its grace."""
        return self._asked_s is not None and time.monotonic() > self._asked_s + GRACE_S

    def stop(self) -> None:
        """Ask for a stop."""
        if self._asked_s is None:
            self._asked_s = time.monotonic()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - signal.signal's signature
        self.stop()
        signal.signal(number, signal.SIG_DFL)

    def _watch(self, parent_pid: int) -> None:
        while not self.stopping:
            if os.getppid() != parent_pid:
                self.stop()
            time.sleep(_POLL_S)


def _end_with(parent_pid: int) -> None:
    while os.getppid() == parent_pid:
        time.sleep(_POLL_S)
    os._exit(1)
