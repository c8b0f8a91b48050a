"""An episode as a readable transcript: what the agent did, what it got to know, and what the rubric says of it."""

from __future__ import annotations

from collections.abc import Iterator

from engine.task import Task
from engine.types import Episode, Event, EventKind, Reward, Verdict

Line = tuple[str, str]
"""(who or what, text)."""


def transcript(episode: Episode, task: Task | None = None) -> list[Line]:
    """The episode line by line: opening, every turn, its end, its verdicts."""
    lines = list(_opening(episode))
    for event in episode.events:
        lines += _event(event)
        lines += _reply(episode, event)
    lines.append(("end", _ending(episode)))
    if episode.reward is not None:
        lines += verdicts(episode.reward, task)
    return lines


def _opening(episode: Episode) -> Iterator[Line]:
    for message in episode.messages:
        if message["role"] == "assistant":
            return
        yield ("rules" if message["role"] == "system" else "user"), str(message["content"])


def _event(event: Event) -> Iterator[Line]:
    if event.kind is EventKind.CALLED:
        arguments = ", ".join(f"{name}={value!r}" for name, value in event.arguments.items())
        yield "agent calls", f"{event.tool}({arguments})"
        yield "tool" if event.ok else "tool error", event.text
    elif event.kind is EventKind.SAID:
        yield "agent asks", event.text
    else:
        yield "agent answers", event.text


def _reply(episode: Episode, event: Event) -> Iterator[Line]:
    """The user's words after something the agent said: the message behind that turn's completion."""
    if event.kind is not EventKind.SAID:
        return
    completions = [index for index, message in enumerate(episode.messages) if message["role"] == "assistant"]
    if event.turn < len(completions) and completions[event.turn] + 1 < len(episode.messages):
        reply = episode.messages[completions[event.turn] + 1]
        if reply["role"] == "user":
            reveals = f"   (reveals {', '.join(event.revealed)})" if event.revealed else ""
            yield "user", f"{reply['content']}{reveals}"


def _ending(episode: Episode) -> str:
    parts = [f"{episode.stop}", f"{episode.outcome}", f"{episode.turns} turns", f"adapter v{episode.version}"]
    if episode.error:
        parts.append(episode.error)
    return ", ".join(parts)


def verdicts(reward: Reward, task: Task | None = None) -> Iterator[Line]:
    """The reward with its parts, then every rubric item."""
    parts = f"F {reward.F:g}  N {reward.N:.2f}  I {reward.I:.2f}"
    yield "reward", f"{reward.value:.2f}   ({parts})"
    texts = rubric_texts(task) if task is not None else {}
    for verdict in reward.items:
        text = texts.get((verdict.part, verdict.id), "")
        evidence = f"   (event {verdict.evidence})" if verdict.evidence is not None else ""
        yield f"  {verdict.part}", f"{mark(verdict)} {verdict.id}{': ' + text if text else ''}{evidence}"


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
