"""Where a recorded episode and its replay part: the first thing that is not the same, in the order of the episode."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

from engine.stream.digest import as_recorded, transcript_sha256
from engine.types import Episode, Reward

_BEFORE, _SHOWN = 40, 160
"""Characters shown before the first that differs, and in all."""
NOTHING = "nothing"


class Difference(NamedTuple):
    """What is not the same, as text for a person."""

    episode: str
    where: str
    """message 4, event 2, token 311, final state, stop reason, verdict subgoal/booked, reward, outcome."""
    expected: str
    """What the record has."""
    found: str
    error: str = ""
    """What ended the replay, where it did not end by itself."""


def difference(recorded: Episode, replayed: Episode) -> Difference | None:
    """The first difference; None if transcript hash, end and reward with its breakdown are the same."""
    same_transcript = transcript_sha256(recorded) == transcript_sha256(replayed)
    told = None if same_transcript else transcript_difference(recorded, replayed)
    return told or _first(recorded, replayed, _ending(recorded, replayed))


def transcript_difference(recorded: Episode, replayed: Episode) -> Difference | None:
    """The first difference in what was said, done and seen, however it ended."""
    return _first(recorded, replayed, _transcript(recorded, replayed))


def _first(recorded: Episode, replayed: Episode, parts: Iterable[_Part]) -> Difference | None:
    for where, expected, found in parts:
        left, right = _text(expected), _text(found)
        if left != right:
            return Difference(recorded.id, where, *_excerpts(left, right), replayed.error)
    return None


_Part = tuple[str, Any, Any]
"""Where, recorded, replayed; None where there is nothing."""


def _transcript(recorded: Episode, replayed: Episode) -> Iterator[_Part]:
    yield from _each("message", recorded.messages, replayed.messages)
    yield from _each("event", recorded.events, replayed.events)
    yield from _each("token", _ids(recorded), _ids(replayed))


def _ending(recorded: Episode, replayed: Episode) -> Iterator[_Part]:
    yield "final state", recorded.final_state, replayed.final_state
    yield "stop reason", recorded.stop, replayed.stop
    before, after = _verdicts(recorded.reward), _verdicts(replayed.reward)
    for name in before | after:
        yield f"verdict {name}", before.get(name), after.get(name)
    yield "reward", recorded.reward, replayed.reward
    yield "outcome", recorded.outcome, replayed.outcome


def _each(what: str, before: Sequence[Any], after: Sequence[Any]) -> Iterator[_Part]:
    for number, (expected, found) in enumerate(zip_longest(before, after)):
        yield f"{what} {number}", expected, found


def _ids(episode: Episode) -> Sequence[int]:
    return [] if episode.tokens is None else episode.tokens.ids.tolist()


def _verdicts(reward: Reward | None) -> dict[str, Any]:
    return {} if reward is None else {f"{verdict.part}/{verdict.id}": verdict for verdict in reward.items}


def _text(value: Any) -> str:
    return NOTHING if value is None else as_recorded(value).decode()


def _excerpts(left: str, right: str) -> tuple[str, str]:
    """Both texts around the first character that differs."""
    at = next((place for place, (one, other) in enumerate(zip(left, right, strict=False)) if one != other), None)
    start = max(0, (min(len(left), len(right)) if at is None else at) - _BEFORE)
    return _excerpt(left, start), _excerpt(right, start)


def _excerpt(text: str, start: int) -> str:
    end = start + _SHOWN
    return f"{'…' if start else ''}{text[start:end]}{'…' if len(text) > end else ''}"
