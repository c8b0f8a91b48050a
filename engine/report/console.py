"""The console of the commands."""

from __future__ import annotations

from rich.console import Console

_PIPED_WIDTH = 130


def wide_console() -> Console:
    """As wide as the terminal; 130 columns where there is none, so that tables survive a pipe or a file."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_PIPED_WIDTH)


def printable(text: str) -> str:
    """A text of a model, a pack or a file for a terminal: what steers one, or is not seen, is spelled as its escape."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char == "\n" else char.encode("unicode_escape").decode() for char in text
    )
