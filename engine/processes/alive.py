"""Whether a process that a file names still runs: by its id and by when it began, for ids are given again."""

from __future__ import annotations

import psutil

_SAME_START_S = 1.0


def found(pid: int, started_s: float) -> psutil.Process | None:
    """The process that began then (seconds since 1970) under this id, if it still runs and can be seen."""
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - started_s) < _SAME_START_S
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return None
    return process if same and lives(process) else None


def lives(process: psutil.Process) -> bool:
    """Whether it still runs; what nobody has waited for yet does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
