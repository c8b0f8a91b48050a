"""The notice that the records of a run are incomplete, looked up anew now and then."""

from __future__ import annotations

import time

from engine.errors import RunError
from engine.rundir.layout import RunDir

_EVERY_S = 30.0
_SHARE = 50
"""Times as long as a look took, until the next: 2 % of a core at most."""


class Incomplete:
    """What the streams of a run lack by its other files; `look` reads files, so it belongs in a worker thread."""

    def __init__(self, run: RunDir) -> None:
        self._run = run
        self._due_s: float | None = None
        self.note = ""
        """One sentence, or empty."""

    def look(self) -> None:
        """Compare again if it is time for that; the first call only begins, so that the first picture need not wait."""
        began_s = time.monotonic()
        if self._due_s is None:
            self._due_s = began_s
        elif began_s >= self._due_s:
            self.note = self._compared()
            took_s = time.monotonic() - began_s
            self._due_s = began_s + max(_EVERY_S, _SHARE * took_s)

    def _compared(self) -> str:
        # With it comes numpy, which takes a sixth of the time until the first picture.
        from engine.stream.integrity import gaps  # noqa: PLC0415

        try:
            found = gaps(self._run)
        except (RunError, OSError) as error:
            return f"whether the records are complete is unknown: {error}"
        if not found:
            return ""
        more = f" (and {len(found) - 1} more: `synth-engine show`)" if len(found) > 1 else ""
        return f"records are incomplete: {found[0].told}{more}"
