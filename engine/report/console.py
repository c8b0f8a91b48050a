"""The console of the commands."""

from __future__ import annotations

from rich.console import Console

_PIPED_WIDTH = 130


def wide_console() -> Console:
    """As wide as the terminal; 130 columns where there is none, so that tables survive a pipe or a file."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_PIPED_WIDTH)
