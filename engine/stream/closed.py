"""closed.json of a stream: its writer ended cleanly, and nothing more will come unless a run goes on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engine.errors import RunError
from engine.rundir.layout import read_json, write_json
from engine.stream.segment import CLOSED


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    """What a writer counted at its end, over all of its lives."""

    segments: int
    frames: int


def read_closed(directory: Path) -> Closed | None:
    """Returns what the writer of this stream counted, or None while more may come; what it did not say is zero.

    Raises RunError for a file of another form."""
    path = directory / CLOSED
    value = read_json(path)
    try:
        return (
            None
            if value is None
            else Closed(segments=int(value.get("segments", 0)), frames=int(value.get("frames", 0)))
        )
    except (TypeError, ValueError) as error:
        raise RunError(f"{path}: not the end of a stream ({error!r}); restore it from a copy") from error


def write_closed(directory: Path, closed: Closed) -> None:
    """Tells readers that nothing more will come.

    Raises RunError if the disk does not take it."""
    write_json(directory / CLOSED, {"segments": closed.segments, "frames": closed.frames})


def reopen_stream(directory: Path) -> None:
    """Tells readers that more will come, before the first of it does."""
    (directory / CLOSED).unlink(missing_ok=True)
