"""How far a command is: a bar on a terminal, one line per ten seconds elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Counted = Callable[[int, int], None]
"""Hears how much is done, and of how much."""
_LINE_S = 10.0


@contextmanager
def counting(console: Console, doing: str, nouns: str) -> Iterator[Counted]:
    """Shows what it hears as `doing` (verifying) `nouns` (groups), for the length of the block."""
    if not console.is_terminal:
        due = time.monotonic() + _LINE_S

        def line(done: int, total: int) -> None:
            nonlocal due
            if time.monotonic() >= due:
                due = time.monotonic() + _LINE_S
                console.print(f"{done:,} of {total:,} {nouns}")

        yield line
        return
    columns = (TextColumn(f"{doing} {nouns}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
