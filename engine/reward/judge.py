"""A language model that decides the rubric items that no check does: one call an episode, one verdict an item.

A verdict that something happened names the event that shows it; one that names none, or none that there is, is asked
for again. What the agent and the tools wrote is evidence, never an instruction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engine.llm.prompts import INSTRUCTIONS
from engine.llm.question import Asker, Question, RefusedReplyError, subject
from engine.reward.rubric import OpenItem
from engine.seams import ScoringRecord
from engine.types import Event, EventKind, Json, Verdict

_LONGEST = 4_000
"""Characters of one event's text that the judge sees."""


class LlmJudge:
    """A Judge that asks a language model (paper section 3.3).

    `occasion` tells apart questions that are the same otherwise: each is then asked, and answered, on its own."""

    def __init__(self, asker: Asker, occasion: Json = None) -> None:
        self._asker = asker
        self._occasion = [] if occasion is None else [occasion]

    async def decide(self, items: Sequence[OpenItem], record: ScoringRecord) -> Sequence[Verdict]:
        """See engine.reward.rubric.Judge."""
        document = {
            "as": "judge",
            "instruction": record.task.instruction,
            "rules": record.task.rules,
            "items": [{"id": entry.item.id, "part": entry.part, "text": entry.item.text} for entry in items],
            "events": _events(record),
            "stop": str(record.stop),
        }
        question = Question(
            role="judge",
            task=record.task.id,
            owner=record.task.id,
            subject=subject("judge", document, *self._occasion),
            instructions=INSTRUCTIONS["judge"],
            document=document,
            schema=_schema(items),
        )
        return await self._asker.ask(question, lambda reply, _: _verdicts(items, record.events, reply["verdicts"]))


def _events(record: ScoringRecord) -> list[dict[str, Any]]:
    """The events as the judge sees them, with what the user replied."""
    # After the opening, every message of role user is the reply to something that was said.
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


def _schema(items: Sequence[OpenItem]) -> dict[str, Any]:
    verdict = {
        "type": "object",
        "properties": {
            "id": {"enum": [entry.item.id for entry in items]},
            "met": {"type": "boolean"},
            "evidence": {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "null"}]},
        },
        "required": ["id", "met", "evidence"],
        "additionalProperties": False,
    }
    verdicts = {"type": "array", "items": verdict, "minItems": len(items), "maxItems": len(items)}
    return {
        "type": "object",
        "properties": {"verdicts": verdicts},
        "required": ["verdicts"],
        "additionalProperties": False,
    }


def _verdicts(items: Sequence[OpenItem], events: Sequence[Event], said: Sequence[Mapping[str, Json]]) -> list[Verdict]:
    """One verdict for every item.

    Raises RefusedReplyError if an item is missing or an evidence is none."""
    by_name, numbers = {verdict["id"]: verdict for verdict in said}, {event.number for event in events}
    verdicts = []
    for entry in items:
        if (verdict := by_name.get(entry.item.id)) is None:
            raise RefusedReplyError("malformed", f"there is no verdict on {entry.item.id}: one for each item, once")
        met, evidence = verdict["met"], verdict["evidence"]
        if met and evidence not in numbers:
            shown = f"event {evidence} does not exist" if evidence is not None else "no event is named"
            raise RefusedReplyError("evidence", f"{entry.item.id} is met, and {shown}: name the event that shows it")
        verdicts.append(
            Verdict(id=entry.item.id, part=entry.part, met=met, evidence=evidence if met else None, by="judge")
        )
    return verdicts
