"""An episode as blocks to read: what each side said and did, how long it took, under which adapter version."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import orjson

from engine.types import Event, EventKind, TurnTiming, Verdict
from tui.snapshot import Conversation
from tui.text import duration, plain
from tui.theme import PHASE_LOOKS, reward_style
from tui.widgets.transcript import Block

_FOLDED_CHARACTERS = 1_500
"""A longer observation, or the rules, begin folded."""


@dataclass(frozen=True, slots=True)
class _Turn:
    """What belongs to one turn."""

    number: int
    said: str
    seen: Sequence[str]
    events: Sequence[Event]
    timings: dict[str, deque[TurnTiming]]
    note: str


def blocks(talk: Conversation) -> list[Block]:
    """The whole episode, in order; keys are stable while it grows."""
    story = list(_opening(talk))
    for turn in _turns(talk):
        story += _told(turn)
    story += _now(talk)
    return story


def _block(phase: str, head: str, text: str, key: str, *, folded: bool = False) -> Block:
    look = PHASE_LOOKS[phase]
    return Block(who=look.letter, style=look.style, head=head, text=text, key=key, folded=folded)


def _opening(talk: Conversation) -> Iterator[Block]:
    for number, message in enumerate(talk.messages):
        if message["role"] == "assistant":
            return
        system = message["role"] == "system"
        who, text = "rules" if system else "task", str(message["content"])
        yield Block(who=who, style="bold", head="", text=text, key=f"open{number}", folded=system)


def _turns(talk: Conversation) -> Iterator[_Turn]:
    starts = [number for number, message in enumerate(talk.messages) if message["role"] == "assistant"]
    for turn, (first, end) in enumerate(pairwise((*starts, len(talk.messages)))):
        timings: dict[str, deque[TurnTiming]] = {}
        for timing in talk.timings:
            if timing.turn == turn:
                timings.setdefault(timing.phase, deque()).append(timing)
        note = ""
        if turn < len(talk.spans):
            span = talk.spans[turn]
            note = f"v{span.version} {span.length}t"
        said, *seen = (str(message["content"]) for message in talk.messages[first:end])
        events = [event for event in talk.events if event.turn == turn]
        yield _Turn(turn, said, seen, events, timings, note)


def _told(turn: _Turn) -> Iterator[Block]:
    head = f"{turn.number}  {_took(turn, 'policy')}  {turn.note}"
    if not turn.events:
        # Nothing came of it: what the agent wrote, and what it was told.
        yield _block("policy", head, turn.said, f"{turn.number}")
        for index, text in enumerate(turn.seen):
            yield Block(who="!", style="bold", head="", text=text, key=f"{turn.number}.{index}")
        return
    for index, event in enumerate(turn.events):
        key = f"{turn.number}.{index}"
        mine = head if index == 0 else ""
        if event.kind is EventKind.CALLED:
            yield _block("policy", mine, f"→ {event.tool} {_arguments(event)}", key)
            refused = "" if event.ok else "error"
            took = f"{_took(turn, 'tool')}  {refused}"
            yield _block("tool", took, event.text, f"{key}t", folded=len(event.text) > _FOLDED_CHARACTERS)
        elif event.kind is EventKind.SAID:
            yield _block("policy", mine, event.text, key)
            reveals = f"reveals {', '.join(event.revealed)}" if event.revealed else ""
            for number, text in enumerate(turn.seen):
                yield _block("user", f"{_took(turn, 'user')}  {reveals}", text, f"{key}u{number}")
        else:
            yield _block("policy", f"{mine}  final answer", event.text, key)


def _took(turn: _Turn, phase: str) -> str:
    """How long the next step of that phase took; each is told once."""
    waiting = turn.timings.get(phase)
    if not waiting:
        return ""
    timing = waiting.popleft()
    return duration(timing.end_s - timing.start_s)


def _arguments(event: Event) -> str:
    return orjson.dumps(event.arguments, default=str).decode()


def _now(talk: Conversation) -> Iterator[Block]:
    """What goes on, or how it ended."""
    row = talk.row
    if not talk.stop:
        yield _block(row.phase, f"{duration(row.wait_s)}  …{PHASE_LOOKS[row.phase].name}", "", "now")
        return
    ending = ", ".join(filter(None, (talk.stop, row.outcome, talk.error)))
    style = reward_style(None if talk.reward is None else talk.reward.value)
    yield Block(who="end", style=style, head="", text=ending, key="end")


def well(verdict: Verdict) -> bool:
    """Whether it speaks for the agent: met, or kept where the item forbids."""
    return verdict.met != (verdict.part == "forbidden")


def verdict_lines(talk: Conversation) -> list[tuple[str, str, str]]:
    """Rubric items as (mark, style, text): what was kept or met and what was not; before the reward, what is asked."""
    if talk.reward is None:
        return [("·", "", f"{part} {plain(text or item)}") for (part, item), text in talk.rubric.items()]
    lines = []
    for verdict in talk.reward.items:
        good = well(verdict)
        # A check that a program makes may have no words.
        text = plain(talk.rubric.get((verdict.part, verdict.id)) or verdict.id)
        where = f" (event {verdict.evidence})" if verdict.evidence is not None else ""
        judged = " judge" if verdict.by == "judge" else ""
        lines.append(
            ("✓" if good else "✗", reward_style(1.0 if good else 0.0), f"{verdict.part} {text}{where}{judged}")
        )
    return lines


def actions(talk: Conversation) -> list[str]:
    """What the agent did, turn by turn, in a word or two: the line along which siblings are compared."""
    done: dict[int, list[str]] = {}
    for event in talk.events:
        word = {EventKind.CALLED: event.tool, EventKind.SAID: "asks", EventKind.ANSWERED: "answers"}[event.kind]
        done.setdefault(event.turn, []).append(word if event.ok else f"{word}!")
    turns = max([talk.row.turn, *(turn + 1 for turn in done)])
    return [" + ".join(done.get(turn, ["—"])) for turn in range(turns)]


def divergence(talks: Sequence[Conversation]) -> int | None:
    """The first turn in which not all of them did the same; None while they agree.

    One in flight does not part from the others by what it has not done yet."""
    told = [(_signatures(talk), bool(talk.stop)) for talk in talks]
    for turn in range(max((len(mine) for mine, _ in told), default=0)):
        done = {mine[turn] if turn < len(mine) else "" for mine, ended in told if ended or turn < len(mine)}
        if len(done) > 1:
            return turn
    return None


def _signatures(talk: Conversation) -> list[str]:
    """Actions with their arguments: the same tool called otherwise is another action."""
    signatures = [""] * len(actions(talk))
    for event in talk.events:
        words = _arguments(event) if event.kind is EventKind.CALLED else ""
        signatures[event.turn] += f"{event.kind} {event.tool} {words};"
    while signatures and not (talk.stop or signatures[-1]):
        # What it does now is told when it is done.
        signatures.pop()
    return signatures
