"""A conversation in flight, put together from what each answer of the engine adds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from engine.stream.record import event_of, reward_of
from engine.telemetry.window import WindowRow
from engine.types import Span, TurnTiming
from tui.snapshot import Conversation

Delta = Mapping[str, Any]

MALFORMED = (KeyError, TypeError, ValueError, AttributeError)
"""What reading an answer raises that is none."""


@dataclass(slots=True)
class Followed:
    """One episode, as far as it has been told."""

    known: Conversation

    @classmethod
    def begun(cls, delta: Delta) -> Self:
        """From the first that was told of it; raises one of MALFORMED."""
        followed = cls(Conversation(row=WindowRow(*delta["row"])))
        followed.add(delta)
        return followed

    def have(self) -> dict[str, int]:
        """How much of each growing list is here."""
        known = self.known
        grown = {"messages": known.messages, "events": known.events, "timings": known.timings}
        grown |= {"ids": known.ids, "logprobs": known.logprobs, "spans": known.spans}
        return {name: len(values) for name, values in grown.items()}

    def add(self, delta: Delta) -> None:
        """Append what is new; raises one of MALFORMED, and has changed nothing then."""
        known = self.known
        told = {(part, item): text for part, item, text in delta.get("rubric", ())}
        self.known = replace(
            known,
            row=WindowRow(*delta["row"]),
            messages=(*known.messages, *map(dict, delta["messages"])),
            events=(*known.events, *map(event_of, delta["events"])),
            timings=(*known.timings, *(TurnTiming(**timing) for timing in delta["timings"])),
            ids=_longer(known.ids, delta["ids"]),
            logprobs=_longer(known.logprobs, delta["logprobs"]),
            spans=(*known.spans, *(Span(**span) for span in delta["spans"])),
            server=str(delta["server"]),
            most_turns=delta["most_turns"],
            most_tokens=delta["most_tokens"],
            stop=str(delta["stop"]),
            # Left out where an answer has no room for them.
            error=str(delta["error"]) or known.error,
            reward=known.reward if delta["reward"] is None else reward_of(delta["reward"]),
            instruction=str(delta.get("instruction", known.instruction)),
            rubric=told or known.rubric,
        )


def _longer(values: Any, new: list[Any]) -> Any:
    """Without a copy where nothing is new: a ledger has thousands."""
    return (*values, *new) if new else values
