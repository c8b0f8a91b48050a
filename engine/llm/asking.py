"""From a question to an answer that keeps its contract: ask, check, ask again, and remember.

A reply counts once it is a JSON object of the asked form and the caller admits it. What is refused is asked for again,
warmer and with the reason; all replies are in the journal. A recorded answer is never asked for twice, and is checked
like a fresh one: with a journal alone (engine.verify) a run's simulators are exactly what they were. A recorded reply
that no record can hold (engine.schema.recordable) is no answer: it is refused in the journal, and asked for again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import orjson

from engine.errors import EpisodeError, RewardError, ToolError, UserError
from engine.llm.batching import EndpointError
from engine.llm.endpoint import Reachable
from engine.llm.journal import Exchange, Journal
from engine.llm.question import Admit, ChatPrompt, Completed, ModelQuestion, RefusedReplyError, Role
from engine.schema import validate
from engine.schema.json_text import parsed
from engine.schema.legible import legible
from engine.schema.recordable import UnrecordableError, recorded, recorded_text
from engine.types import ChatMessage, Json

_T = TypeVar("_T")

ROLE_ERRORS: Mapping[Role, type[EpisodeError]] = {"tool": ToolError, "user": UserError, "judge": RewardError}
_ATTEMPTS = 4
"""Replies to one question before it is given up."""
_WARMER = 0.7
"""At temperature 0 the same question would get the same wrong answer."""


@dataclass(slots=True, kw_only=True)
class Tally:
    """How one role's questions went, since the start."""

    asked: int = 0
    recorded: int = 0
    """Questions that the journal answered."""
    replies: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    """Replies that broke their contract, by kind; each was asked for again."""
    given_up: int = 0
    """Questions without an acceptable reply: the episode is a simulator fault."""
    prompt_tokens: int = 0
    completion_tokens: int = 0


class JournaledAsker:
    """An Asker over one endpoint, or the journal alone; `earlier` journals are looked up first, and not written."""

    def __init__(self, journal: Journal, reachable: Reachable | None, earlier: Sequence[Journal] = ()) -> None:
        self._journal, self._reachable, self._earlier = journal, reachable, earlier
        self.tallies: dict[Role, Tally] = {role: Tally() for role in ROLE_ERRORS}

    async def ask(self, question: ModelQuestion, admit: Admit[_T]) -> _T:
        """See engine.llm.question.Asker."""
        fault, tally = ROLE_ERRORS[question.role], self.tallies[question.role]
        tally.asked += 1
        answered = await self._find(question.subject)
        if answered is not None:
            tally.recorded += 1
            try:
                return _recorded(answered, question, admit)
            except RefusedReplyError as refusal:
                raise fault(f"{_what(question)}: the recorded reply is refused: {refusal.reason}") from refusal
        if self._reachable is None:
            raise fault(f"{_what(question)}: not in the journal")
        try:
            return await self._asked(self._reachable, question, admit)
        except EndpointError as error:
            tally.given_up += 1
            raise fault(f"{_what(question)}: {error}") from error

    async def _find(self, subject: str) -> Exchange | None:
        """The exchange that answers a question; what has no usable text does not."""
        for journal in (*self._earlier, self._journal):
            if (found := await journal.find(subject)) is None:
                continue
            try:
                _object(found.reply)
            except RefusedReplyError as refusal:
                if journal is self._journal and self._reachable is not None:
                    await journal.withdraw(found, f"{refusal.kind}: {refusal.reason}")
                continue
            return found
        return None

    async def _asked(self, reachable: Reachable, question: ModelQuestion, admit: Admit[_T]) -> _T:
        """Ask until a reply is admitted.

        Raises EndpointError, or the fault of the role with the last reason."""
        tally, settings = self.tallies[question.role], reachable.endpoint.settings
        messages, reason = question.messages, ""
        for attempt in range(_ATTEMPTS):
            temperature = max(settings.temperature, _WARMER if attempt else 0.0)
            prompt = ChatPrompt(messages, question.held_to or question.schema, temperature)
            completed = await reachable.batcher.call(question.owner, prompt)
            tally.replies += 1
            tally.prompt_tokens += completed.prompt_tokens
            tally.completion_tokens += completed.completion_tokens
            exchange = _exchange(reachable, question, prompt, completed, attempt)
            try:
                value = _admitted(completed.text, question, admit, question.document)
            except RefusedReplyError as refusal:
                tally.refused[refusal.kind] += 1
                reason = refusal.reason
                self._journal.keep(exchange._replace(refusal=f"{refusal.kind}: {reason}"))
                messages = (*question.messages, *_again(reason))
                continue
            kept = self._journal.keep(exchange)
            # Somebody else may have asked the same at the same time: the first answer is everybody's.
            return value if kept is exchange else _recorded(kept, question, admit)
        tally.given_up += 1
        raise ROLE_ERRORS[question.role](f"{_what(question)}: {_ATTEMPTS} replies were refused, the last one: {reason}")


def _admitted(text: str, question: ModelQuestion, admit: Admit[_T], document: Mapping[str, Any]) -> _T:
    """What the caller makes of a reply to a document.

    Raises RefusedReplyError for text without a JSON object, one of the wrong form, and whatever the caller refuses."""
    value = _object(text)
    defect = validate.compiled_schema(question.schema)(value)
    if defect is not None:
        where = ".".join(map(str, defect.path)) or "the object"
        raise RefusedReplyError("malformed", f"{where}: {defect.reason}")
    return admit(value, document)


def _object(text: str) -> Json:
    """The JSON object in a reply.

    Raises RefusedReplyError for a text without one, and for one that no record can hold."""
    value = parsed(text)
    if value is None:
        raise RefusedReplyError("malformed", "it is not one JSON object")
    try:
        recorded_text(text)
        return recorded(value)
    except UnrecordableError as error:
        raise RefusedReplyError("malformed", str(error)) from error


def _recorded(exchange: Exchange, question: ModelQuestion, admit: Admit[_T]) -> _T:
    """What the caller makes of an answer that was given before."""
    document = orjson.loads(orjson.loads(exchange.request)["messages"][1]["content"])
    return _admitted(exchange.reply, question, admit, document)


def _again(reason: str) -> tuple[ChatMessage, ChatMessage]:
    """What follows a question whose reply was refused: the reason, without the reply, which small models copy."""
    asked = f"This cannot be used: {reason}. Answer the document again, with one JSON object and nothing else."
    return {"role": "assistant", "content": "{}"}, {"role": "user", "content": asked}


def _exchange(
    reachable: Reachable, question: ModelQuestion, prompt: ChatPrompt, completed: Completed, attempt: int
) -> Exchange:
    asked = {"messages": prompt.messages, "schema": prompt.schema, "temperature": prompt.temperature}
    return Exchange(
        subject=question.subject,
        attempt=attempt,
        role=question.role,
        task=question.task,
        endpoint=reachable.endpoint.name,
        model=reachable.endpoint.settings.model,
        request=orjson.dumps(asked),
        reply=legible(completed.text),
        refusal="",
        prompt_tokens=completed.prompt_tokens,
        completion_tokens=completed.completion_tokens,
    )


def _what(question: ModelQuestion) -> str:
    return f"{question.task}: {question.role} simulator" if question.role != "judge" else f"{question.task}: judge"
