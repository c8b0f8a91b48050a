"""What a screen tells the dashboard."""

from __future__ import annotations

from textual.message import Message

from engine.telemetry.window import Window


class Changed(Message):
    """It wants to see something else: look at once."""


class Open(Message):
    """Show this episode; `window` is the table that it was chosen from."""

    def __init__(self, id: str, window: Window) -> None:  # noqa: A002 - the name of an episode's id everywhere
        super().__init__()
        self.id, self.window = id, window


class Filtered(Message):
    """Show the episodes that pass this filter."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where


class Cancel(Message):
    """Somebody wants this episode to end."""

    def __init__(self, id: str) -> None:  # noqa: A002 - the name of an episode's id everywhere
        super().__init__()
        self.id = id
