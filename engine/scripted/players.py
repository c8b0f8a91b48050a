"""What a competent simulator says to a prompt document, by rules: one class a role, each what it reads of its document.

A document is the user message of a prompt: one compact JSON object that starts with `"as": "tool" | "user" | "judge"`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from json import JSONDecodeError, JSONDecoder
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from engine.schema.canonical import canonical, canonical_bytes, same
from engine.schema.draw import drawn_value
from engine.schema.validate import compiled_schema
from engine.task import Fact
from engine.types import Json
from engine.world import offline_user

_START = re.compile(r'\{"as":"(?:tool|user|judge)"')
_DECODER = JSONDecoder()
_WORD = re.compile(r"\w+")
_BETWEEN_WORDS = re.compile(r"[\W_]+")
_EXACT = {"enum", "const", "pattern", "format"}
"""Keywords of parameters that are no free text."""
_ENOUGH_LETTERS = 3


def find_document(text: str) -> dict[str, Any] | None:
    """The last prompt document in a rendered prompt, whatever stands around it; None if there is none."""
    found, at = None, 0
    while start := _START.search(text, at):
        try:
            # The next one is looked for behind this one: an object inside it that has an "as" too is no document.
            found, at = _DECODER.raw_decode(text, start.start())
        except JSONDecodeError:
            at = start.end()
    return found


class _Read(BaseModel):
    """Part of a document; fields that the rules do not need are not looked at."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


class _Tool(_Read):
    name: str
    parameters: dict[str, Any]
    outputs: dict[str, Any] | None = None


class _Answered(_Read):
    number: int
    tool: str
    arguments: dict[str, Any]
    ok: bool = True
    answer: Any


class ToolPlayer(_Read):
    """Repeats the answer to a call that means the same; otherwise makes one that fits outputs and arguments."""

    tool: _Tool
    arguments: dict[str, Any]
    answers: list[_Answered]

    def reply(self) -> dict[str, Json]:
        """`{"same_as": null|int, "answer": {"ok": true, "outputs": {...}}}`."""
        for entry in self.answers:
            if entry.tool == self.tool.name and same(self._meant(entry.arguments), self._meant(self.arguments)):
                said = {"outputs": entry.answer} if entry.ok else entry.answer
                return {"same_as": entry.number, "answer": {"ok": entry.ok, **said}}
        return {"same_as": None, "answer": {"ok": True, "outputs": self._made()}}

    def _meant(self, arguments: Mapping[str, Any]) -> dict[str, Json]:
        """Arguments without what means nothing in free text: case, white space, punctuation. Codes stay as they are."""
        declared = self.tool.parameters.get("properties", {})
        return {
            name: _BETWEEN_WORDS.sub(" ", value.casefold()).strip()
            if isinstance(value, str) and not _EXACT & declared.get(name, {}).keys()
            else value
            for name, value in arguments.items()
        }

    def _made(self) -> Json:
        outputs = self.tool.outputs
        if outputs is None:
            return {"status": "ok"}
        seed = self.tool.name.encode() + b"\0" + canonical_bytes(canonical(self.arguments))
        answer = drawn_value(seed, "answer", outputs)
        if not isinstance(answer, dict):
            return answer
        # An answer that names what the call named, and something else for it, would contradict it.
        for name in answer.keys() & self.arguments.keys():
            echoed = {**answer, name: self.arguments[name]}
            if compiled_schema(outputs)(echoed) is None:
                answer = echoed
        return answer


class _Fact(_Read):
    name: str
    value: Any
    about: list[str]


class _Mistake(_Read):
    fact: str
    right: Any


class UserPlayer(_Read):
    """The offline user, with the words that asked; it corrects itself first, and cannot recall a value of null."""

    facts: list[_Fact]
    correct: list[_Mistake] = Field(default_factory=list)
    agent: str

    def reply(self) -> dict[str, Json]:
        """`{"sentences": [{"asked_by": str, "fact": null|str, "says": str}], "done": false}`."""
        # Without keywords a fact would be revealed by anything at all.
        facts = {fact.name: Fact(value=fact.value, keywords=tuple(fact.about)) for fact in self.facts if fact.about}
        said = [_saying(f"Sorry. {_sentence(mistake.fact, mistake.right)}") for mistake in self.correct]
        said += [
            _saying(_sentence(name, facts[name].value), name, self._quoted(words))
            for name, words in offline_user.asked(facts, self.agent).items()
        ]
        return {"sentences": said or [_saying(offline_user.UNSURE)], "done": False}

    def _quoted(self, words: str) -> str:
        """The words that asked; where they are too few to show anything, all that the agent said."""
        return words if sum(map(str.isalpha, words)) >= _ENOUGH_LETTERS else self.agent


class _Item(_Read):
    id: str
    part: Literal["forbidden", "subgoal", "interaction"]
    text: str


class _Event(_Read):
    number: int
    kind: Literal["called", "said", "answered"]
    tool: str | None = None
    ok: bool | None = None
    revealed: list[str] | None = None


class JudgePlayer(_Read):
    """Believes that an item is about the tools that its text names: the words with an underscore."""

    items: list[_Item]
    events: list[_Event]

    def reply(self) -> dict[str, Json]:
        """By the id of each item the number of the event that shows it, or null."""
        return {item.id: self._evidence(item) for item in self.items}

    def _evidence(self, item: _Item) -> int | None:
        named = {word for word in _WORD.findall(item.text) if "_" in word}
        if named or item.part == "forbidden":
            calls = [event for event in self.events if event.kind == "called" and event.ok and event.tool in named]
            enough = calls if item.part == "forbidden" else named == {event.tool for event in calls}
            return calls[-1].number if enough else None
        if item.part == "subgoal":
            matching = [event for event in self.events if event.kind == "answered"]
        else:
            matching = [event for event in self.events if event.kind == "said" and event.revealed]
        return matching[-1].number if matching else None


Player = ToolPlayer | UserPlayer | JudgePlayer
_PLAYERS: Mapping[str, type[Player]] = {"tool": ToolPlayer, "user": UserPlayer, "judge": JudgePlayer}


def player(document: Mapping[str, Any]) -> Player:
    """Who answers a document.

    Raises pydantic's ValidationError, naming the field, where the document is not what its role reads."""
    return _PLAYERS[document["as"]].model_validate(document)


def _saying(text: str, fact: str | None = None, asked_by: str = "") -> dict[str, Json]:
    return {"asked_by": asked_by, "fact": fact, "says": text}


def _sentence(fact: str, value: Json) -> str:
    """What the offline user says of a fact; truth as people speak of it."""
    if value is None:
        return f"I cannot recall the {fact.replace('_', ' ')} right now."
    spoken = ("yes" if value else "no") if isinstance(value, bool) else value
    return offline_user.sentence(fact, spoken)
