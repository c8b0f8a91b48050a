"""Texts of models, packs and files as people see them: what is no character, or steers a terminal, is an escape."""

from __future__ import annotations


def legible(text: str) -> str:
    """Returns a text for people, in which half a surrogate pair is spelled out as its escape."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def printable(text: str, kept: str = "\n") -> str:
    """Returns a text for a terminal: what steers one, or is not seen, is spelled as its escape, but for `kept`."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char in kept else char.encode("unicode_escape").decode() for char in text
    )
