"""A recorded episode as the screens draw it: whole, or as far as it had got at a moment."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import orjson
import zstandard

from engine.telemetry.window import WindowRow
from engine.types import Episode, Event, EventKind, Span, TurnTiming
from tui.snapshot import Conversation, RunFacts

_PARTS = {"forbidden": "forbidden", "subgoals": "subgoal", "interactions": "interaction"}
"""Lists of a rubric, and the part that a verdict names."""
_TASKS = 64
_NOT_OF_A_TURN = ("queued", "scoring")


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskText:
    """What a task says to a person."""

    instruction: str = ""
    rubric: Mapping[tuple[str, str], str]


@lru_cache(maxsize=_TASKS)
def task_text(pack: Path, task_id: str) -> TaskText:
    """The texts of a task of a pack.jsonl.zst; empty ones where it cannot be read, or has no such task."""
    wanted = orjson.dumps(task_id)
    try:
        with pack.open("rb") as file:
            for line in _lines(file):
                if wanted in line and (task := orjson.loads(line)).get("id") == task_id:
                    return TaskText(instruction=str(task["instruction"]), rubric=dict(_items(task["rubric"])))
    except (OSError, zstandard.ZstdError, ValueError, KeyError, TypeError, AttributeError):
        # A pack was checked when the run was made: one that cannot be read now costs the texts, not the episode.
        pass
    return TaskText(rubric={})


def _lines(file: io.BufferedReader) -> Iterator[bytes]:
    yield from io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True))


def _items(rubric: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], str]]:
    for name, part in _PARTS.items():
        for item in rubric.get(name, ()):
            yield (part, str(item["id"])), str(item["text"])


def ids_until(spans: Sequence[Span], said: int, total: int, *, waiting: bool) -> int:
    """How many of the `total` ids of an episode there were after `said` completions, of which the last still waits
    for what its tools or its user answer, or not."""
    if waiting and 0 < said <= len(spans):
        return spans[said - 1].start + spans[said - 1].length
    return spans[said].start if said < len(spans) else total


def conversation(
    episode: Episode,
    row: WindowRow,
    *,
    facts: RunFacts,
    text: TaskText,
    advantage: float | None = None,
    moment_s: float = math.inf,
) -> Conversation:
    """The episode at a moment of the run's clock, with its row of then; what had not happened is left out."""
    over = row.phase == "done"
    timings = tuple(timing for timing in episode.timings if over or timing.end_s <= moment_s)
    said = sum(message["role"] == "assistant" for message in episode.messages)
    waiting = False
    if not over:
        said = sum(timing.phase == "policy" for timing in timings)
        waits = {one.turn for one in episode.timings[len(timings) :] if one.phase not in _NOT_OF_A_TURN}
        waiting = said - 1 in waits
    tokens, spans = episode.tokens, () if episode.tokens is None else episode.tokens.spans[:said]
    end = 0 if tokens is None else ids_until(tokens.spans, said, len(tokens.ids), waiting=waiting)
    return Conversation(
        row=row,
        messages=tuple(_messages(episode.messages, said, waiting=waiting)),
        events=episode.events if over else tuple(_events(episode.events, timings)),
        timings=timings,
        ids=() if tokens is None else tuple(tokens.ids[:end].tolist()),
        logprobs=() if tokens is None else tuple(tokens.logprobs[: sum(span.length for span in spans)].tolist()),
        spans=spans,
        server=episode.server,
        most_turns=facts.most_turns,
        most_tokens=facts.most_tokens,
        stop=str(episode.stop) if over else "",
        error=episode.error if over else "",
        reward=episode.reward if over else None,
        advantage=advantage,
        instruction=text.instruction,
        rubric=text.rubric,
    )


def _messages(messages: Iterable[Mapping[str, Any]], said: int, *, waiting: bool) -> Iterator[Mapping[str, Any]]:
    """The prompt and `said` completions with what was answered; the agent gets all answers of a turn together."""
    seen = 0
    for message in messages:
        if message["role"] == "assistant":
            seen += 1
            if seen > said:
                return
        elif waiting and seen == said:
            return
        yield message


def _events(events: Iterable[Event], timings: Sequence[TurnTiming]) -> Iterator[Event]:
    """Those that were over: an answer with its completion, a call or a question when it was answered."""
    answered = [timing.turn for timing in timings if timing.phase == "policy"]
    left = [timing.turn for timing in timings if timing.phase in ("tool", "user")]
    for event in events:
        if event.kind is EventKind.ANSWERED:
            if event.turn in answered:
                yield event
        elif event.turn in left:
            left.remove(event.turn)
            yield event
