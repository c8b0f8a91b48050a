"""What a rubric's prose says of a tool: that it must not be called, that it may be, or that it depends.

Sentence by sentence, for tools that the prose names. It is a reading by rule, not by understanding: where the rule
finds a condition, it leaves the decision to a judge.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import StrEnum

_FORBIDS = re.compile(
    r"\b(?i:must|should|may|shall|can|does|do|did)\s+not\b|\b(?i:cannot|never)\b|\bNOT\b|\b(?i:no calls?)\b"
    r"|^\W*(?:\d+\W+)?No\b"
)
_TURNS = re.compile(r"\b(?:but|instead|skip|omit|forget|fail|after|when|if|because|since)\b", re.IGNORECASE)
"""Words behind which a prohibition no longer speaks of what follows."""
_DEPENDS = re.compile(r"\b(?:before|without|until|unless|only (?:if|after|when|once))\b", re.IGNORECASE)
_PERMITS = re.compile(r"\b(?:may|can|allowed|permitted)\b(?!\s+not\b)", re.IGNORECASE)


class Stance(StrEnum):
    """What a rubric says of calling a tool."""

    FORBIDDEN = "forbidden"
    PERMITTED = "permitted"
    DEPENDS = "depends"
    """On what happened before: only a judge can tell."""
    SILENT = "silent"
    """Nothing of these."""


def stance(tool: str, rubric: str) -> Stance:
    """What the prose of a rubric says of calling a tool; a plain prohibition anywhere outweighs the rest."""
    found = {_of_sentence(tool, sentence) for sentence in _sentences(rubric)}
    order = (Stance.FORBIDDEN, Stance.PERMITTED, Stance.DEPENDS)
    return next((known for known in order if known in found), Stance.SILENT)


def _of_sentence(tool: str, sentence: str) -> Stance:
    named = [match.start() for match in re.finditer(rf"(?<!\w){re.escape(tool)}(?!\w)", sentence)]
    if not named:
        return Stance.SILENT
    for prohibition in _FORBIDS.finditer(sentence):
        rest = sentence[prohibition.end() :]
        reaches = any(
            start >= prohibition.end() and not _TURNS.search(sentence[prohibition.end() : start]) for start in named
        )
        if reaches and not _DEPENDS.search(rest):
            return Stance.FORBIDDEN
    if _DEPENDS.search(sentence):
        return Stance.DEPENDS
    return Stance.PERMITTED if _PERMITS.search(sentence) else Stance.SILENT


def _sentences(text: str) -> Iterator[str]:
    yield from filter(str.strip, re.split(r"(?<=[.!?;])\s+|\n+|(?:^|\s)\(?\d+\)\s", text))
