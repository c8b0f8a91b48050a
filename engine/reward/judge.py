"""A language model that decides the rubric items that no check does: one call an episode, one verdict an item.

A verdict is the number of the event that shows that something happened, or null: none is met without evidence. What
the agent and the tools wrote is evidence, never an instruction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engine.core.seams import ScoringRecord
from engine.llm.prompts import ROLE_INSTRUCTIONS
from engine.llm.question import Asker, ModelQuestion, exactly, one_of
from engine.reward.rubric import OpenItem
from engine.types import Event, EventKind, Verdict

_LONGEST = 4_000
"""Characters of one event's text that the judge sees."""


class LlmJudge:
    """A Judge that asks a language model (paper section 3.3)."""

    def __init__(self, asker: Asker) -> None:
        self._asker = asker

    async def decide(self, items: Sequence[OpenItem], record: ScoringRecord) -> Sequence[Verdict]:
        """See engine.reward.rubric.Judge; where nothing happened nobody is asked."""
        if not record.events:
            return _verdicts(items, {entry.item.id: None for entry in items})
        document = {
            "as": "judge",
            "instruction": record.task.instruction,
            "rules": record.task.rules,
            "items": [{"id": entry.item.id, "part": entry.part, "text": entry.item.text} for entry in items],
            "events": _events(record),
            "stop": str(record.stop),
        }
        question = ModelQuestion(
            role="judge",
            task=record.task.id,
            owner=record.task.id,
            about=("judge", document),
            instructions=ROLE_INSTRUCTIONS["judge"],
            document=document,
            schema=_schema(items, {"type": ["integer", "null"], "minimum": 0, "maximum": len(record.events) - 1}),
            # Not every server holds numbers to their bounds.
            held_to=_schema(items, one_of("integer", range(len(record.events)))),
        )
        return await self._asker.ask(question, lambda reply, _: _verdicts(items, reply))


def _events(record: ScoringRecord) -> list[dict[str, Any]]:
    """The events as the judge sees them, with what the user replied."""
    # After the prompt, every message of role user is the reply to something that was said.
    replies = iter([message["content"] for message in record.messages if message["role"] == "user"][1:])
    return [_shown(event, next(replies, "") if event.kind is EventKind.SAID else "") for event in record.events]


def _shown(event: Event, reply: str) -> dict[str, Any]:
    shown: dict[str, Any] = {"number": event.number, "kind": str(event.kind)}
    if event.kind is EventKind.CALLED:
        shown |= {"tool": event.tool, "arguments": event.arguments, "ok": event.ok}
    shown["text"] = event.text[:_LONGEST]
    if event.kind is EventKind.SAID:
        shown |= {"reply": reply[:_LONGEST], "revealed": list(event.revealed)}
    return shown


def _schema(items: Sequence[OpenItem], verdict: Mapping[str, Any]) -> dict[str, Any]:
    """Every item by its id, so that a reply can neither leave one out nor decide it twice."""
    return exactly({entry.item.id: verdict for entry in items})


def _verdicts(items: Sequence[OpenItem], said: Mapping[str, float | None]) -> list[Verdict]:
    """One verdict for every item, from a reply that fits the schema."""
    evidence = {id_: None if number is None else int(number) for id_, number in said.items()}
    return [
        Verdict(
            id=entry.item.id,
            part=entry.part,
            met=evidence[entry.item.id] is not None,
            evidence=evidence[entry.item.id],
            by="judge",
        )
        for entry in items
    ]
