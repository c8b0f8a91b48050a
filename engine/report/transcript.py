"""An episode as a readable transcript: what the agent did, what it got to know, and what the rubric says of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from engine.task import Task
from engine.types import Episode, Event, EventKind, Reward, Verdict


class TranscriptLine(NamedTuple):
    """One line for a person."""

    who: str
    """Who or what."""
    text: str
    turn: int | None = None
    """Where a turn begins: its number, as in `g000178.03@09`."""


def transcript(episode: Episode, task: Task | None = None, start: int = 0) -> list[TranscriptLine]:
    """The episode line by line: prompt, every turn, its end, its verdicts; with `start` from that turn on."""
    lines = [] if start else list(_opening(episode))
    completions = [index for index, message in enumerate(episode.messages) if message["role"] == "assistant"]
    for turn, (first, end) in enumerate(zip(completions, [*completions[1:], len(episode.messages)], strict=True)):
        if turn >= start:
            head, *rest = _turn(episode, turn, first, end)
            lines += [head._replace(turn=turn), *rest]
    lines.append(TranscriptLine("end", _ending(episode)))
    if episode.reward is not None:
        lines += verdicts(episode.reward, task)
    return lines


def _opening(episode: Episode) -> Iterator[TranscriptLine]:
    for message in episode.messages:
        if message["role"] == "assistant":
            return
        yield TranscriptLine("rules" if message["role"] == "system" else "user", str(message["content"]))


def _turn(episode: Episode, turn: int, first: int, end: int) -> Iterator[TranscriptLine]:
    """The events of a turn, whose messages are those from `first` to `end`; its messages where it has no event."""
    said, *seen = episode.messages[first:end]
    events = [event for event in episode.events if event.turn == turn]
    for event in events:
        yield from _event(event)
        if event.kind is EventKind.SAID:
            yield from _reply(event, seen)
    if not events:
        yield TranscriptLine("agent writes", str(said["content"]))
        yield from (TranscriptLine("tool error", str(message["content"])) for message in seen)


def _event(event: Event) -> Iterator[TranscriptLine]:
    if event.kind is EventKind.CALLED:
        arguments = ", ".join(f"{name}={value!r}" for name, value in event.arguments.items())
        yield TranscriptLine("agent calls", f"{event.tool}({arguments})")
        yield TranscriptLine("tool" if event.ok else "tool error", event.text)
    elif event.kind is EventKind.SAID:
        yield TranscriptLine("agent asks", event.text)
    else:
        yield TranscriptLine("agent answers", event.text)


def _reply(event: Event, seen: Sequence[Mapping[str, Any]]) -> Iterator[TranscriptLine]:
    """The user's words after something the agent said; a user who left has none."""
    reveals = f"   (reveals {', '.join(event.revealed)})" if event.revealed else ""
    yield from (TranscriptLine("user", f"{message['content']}{reveals}") for message in seen)


def _ending(episode: Episode) -> str:
    parts = [f"{episode.stop}", f"{episode.outcome}", f"{episode.turns} turns", f"adapter v{episode.version}"]
    if episode.error:
        parts.append(episode.error)
    return ", ".join(parts)


def verdicts(reward: Reward, task: Task | None = None) -> Iterator[TranscriptLine]:
    """The reward with its parts, then every rubric item."""
    parts = f"F {reward.F:g}  N {reward.N:.2f}  I {reward.I:.2f}"
    yield TranscriptLine("reward", f"{reward.value:.2f}   ({parts})")
    texts = rubric_texts(task) if task is not None else {}
    for verdict in reward.items:
        text = texts.get((verdict.part, verdict.id), "")
        evidence = f"   (event {verdict.evidence})" if verdict.evidence is not None else ""
        yield TranscriptLine(
            f"  {verdict.part}", f"{mark(verdict)} {verdict.id}{': ' + text if text else ''}{evidence}"
        )


def mark(verdict: Verdict) -> str:
    """A verdict in one word."""
    if verdict.part == "forbidden":
        return "VIOLATED" if verdict.met else "kept"
    return "met" if verdict.met else "missed"


def rubric_texts(task: Task) -> dict[tuple[str, str], str]:
    """The text of every rubric item, by part and id."""
    rubric = task.rubric
    parts = {"forbidden": rubric.forbidden, "subgoal": rubric.subgoals, "interaction": rubric.interactions}
    return {(part, item.id): item.text for part, items in parts.items() for item in items}


def described(task: Task, *, played: bool = False) -> list[TranscriptLine]:
    """What a task tells to whom, line by line; of one whose transcript follows, what that does not tell."""
    lines = [("task", f"{task.id} ({task.kind}, {task.split})"), ("persona", task.persona)]
    if not played:
        lines += [("rules", task.rules), ("instruction", task.instruction)]
    if task.user is not None:
        lines.append(("private", task.user.context))
        lines += [
            ("fact", f"{name} = {fact.value} (asked by {', '.join(fact.keywords)})")
            for name, fact in task.user.facts.items()
        ]
    lines += [("tool", f"{tool.name}: {tool.description}") for tool in task.tools]
    lines += [("workflow", step) for step in task.workflow]
    if not played:
        lines += [(part, f"{item}: {text}") for (part, item), text in rubric_texts(task).items()]
    lines.append(("state", orjson.dumps(task.world.state).decode()))
    return [TranscriptLine(who, text) for who, text in lines if text]
