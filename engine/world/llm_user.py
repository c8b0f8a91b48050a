"""A user played by a language model: it answers from the private context alone, when it is asked, a little at a time.

A reply is a few sentences, each with the fact that it is about and the agent's words that asked for it. It is checked
before the agent sees it (docs/simulators.md): it states facts word for word, those that the agent's words ask
for, at most two, and at least one where the task foresaw the words; it makes up no number; it names no tool and recites
nothing; it does not leave while it is asked something. What it revealed is what its words state, not what it claims.
"""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from engine.core.seams import Session
from engine.errors import UserError
from engine.llm.prompts import ROLE_INSTRUCTIONS
from engine.llm.question import Asker, ModelQuestion, RefusedReplyError, exactly, one_of
from engine.schema.canonical import same
from engine.task import Fact, Task
from engine.types import Json, Reply
from engine.world.offline_user import AT_MOST, asked
from engine.world.profiles import Profile, profile

_LONGEST = 600
"""Characters of a reply: one or two sentences, and a sentence too many."""
_NUMBER = re.compile(r"\w*\d(?:[\w.,:/-]*\w)?")
"""A number, a date, a time, a code: anything with a digit."""
_SENTENCES = 3
_END = re.compile(r"(?<=[.?!;])\s+|\n+")
_MOST_CLAUSES = 40
"""A message of many is no reason for a schema that a server refuses."""
_QUOTED_LETTERS = 3
_RECITED = 12
"""Words in a row of the private context that nobody says by chance."""


class LlmUser:
    """Opens users that a language model plays (arXiv 2601.22511, section 3.2)."""

    def __init__(self, asker: Asker, profile: str) -> None:
        self._asker, self._profile = asker, profile

    async def open(self, task: Task, seed: int, session: Session) -> LlmUserSession:  # noqa: ARG002 - the seam's
        """A user with the task's private context, of a profile that follows from the seed.

        Raises UserError for a task without a user."""
        if task.user is None:
            raise UserError(f"task {task.id} has no user")
        drawn = profile(self._profile, task.user, random.Random(f"profile/{task.id}/{seed}"))
        return LlmUserSession(asker=self._asker, task=task, seed=seed, profile=drawn)


@dataclass(slots=True, kw_only=True, eq=False)
class LlmUserSession:
    """One episode's user."""

    asker: Asker
    task: Task
    seed: int
    profile: Profile
    _conversation: list[dict[str, str]] = field(default_factory=list)
    _told: dict[str, Json] = field(default_factory=dict)
    """What was said of each fact, last."""
    _asked_before: set[str] = field(default_factory=set)
    """Facts that it could not recall when it was asked."""

    async def reply(self, message: str) -> Reply:
        """Answer the agent.

        Raises UserError if the model gives no acceptable reply."""
        values, meant = self._values(), asked(self._facts, message)
        reply = await self.asker.ask(
            self._question(message, values, meant), lambda said, _: self._admit(said, message, values, meant)
        )
        self._conversation.append({"agent": message, "you": reply.text})
        self._told |= {name: values[name] for name in reply.revealed if values[name] is not None}
        self._asked_before |= {name for name in reply.revealed if values[name] is None}
        patience = self.profile.patience
        left = patience is not None and len(self._conversation) >= patience
        # What was said wrong, or not recalled, is not revealed.
        true = tuple(name for name in reply.revealed if same(values[name], self._facts[name].value))
        return Reply(text=reply.text, revealed=true, done=reply.done or left)

    @property
    def _facts(self) -> Mapping[str, Fact]:
        assert self.task.user is not None
        return self.task.user.facts

    def _values(self) -> dict[str, Json]:
        """What the user would say of each fact right now; None: it cannot recall it."""
        values: dict[str, Json] = {name: fact.value for name, fact in self._facts.items()}
        values |= dict.fromkeys(self.profile.forgets - self._asked_before)
        return values | {name: wrong for name, wrong in self.profile.mistakes.items() if name not in self._told}

    def _question(self, message: str, values: Mapping[str, Json], meant: Iterable[str]) -> ModelQuestion:
        user = self.task.user
        assert user is not None
        facts = [
            {"name": name, "value": values[name], "about": fact.keywords} for name, fact in sorted(self._facts.items())
        ]
        wrong = {name: told for name, told in self._told.items() if not same(told, values[name])}
        document = {
            "as": "user",
            "request": self.task.instruction,
            "persona": self.task.persona,
            "context": user.context,
            "style": user.style,
            "profile": self.profile.manner,
            "facts": facts,
            "told": list(self._told),
            "correct": [{"fact": name, "said": said, "right": values[name]} for name, said in wrong.items()],
            "earlier": list(self._conversation),
            "agent": message,
            # The words that the task foresaw, last: a small model goes by what it has just read.
            "asked": [{"fact": name, "value": values[name]} for name in meant],
        }
        return ModelQuestion(
            role="user",
            task=self.task.id,
            owner=f"{self.task.id}/{self.seed}",
            about=("user", self.task.id, self.seed, self.profile.name, self._conversation, message),
            instructions=ROLE_INSTRUCTIONS["user"],
            document=document,
            schema=_schema({"enum": [None, *user.facts]}, {"type": "string"}, {"type": "boolean"}),
            # A server that takes schemas is let quote nothing but this message (small models answer an earlier one
            # otherwise), and is not let leave while it is asked something.
            held_to=_schema(
                one_of("string", [*user.facts]),
                {"type": "string", "enum": ["", *_clauses(message)]},
                {"type": "boolean", "const": False} if "?" in message else {"type": "boolean"},
            ),
        )

    # --- the contract -----------------------------------------------------------------------------------------------

    def _admit(self, said: Json, message: str, values: Mapping[str, Json], meant: Mapping[str, str]) -> Reply:
        """The reply to a message whose words are `meant` to ask for these facts, if it keeps the contract.

        Raises RefusedReplyError that says what is wrong with it."""
        text = " ".join(filter(None, [sentence["says"].strip() for sentence in said["sentences"]]))
        claimed = {
            sentence["fact"]: sentence["asked_by"] for sentence in said["sentences"] if sentence["fact"] is not None
        }
        self._refuse_form(text)
        words, heard = _plain(text), _plain(message)
        answered = [name for name, quote in claimed.items() if name in meant or _asks(heard, quote)]
        spoken = [name for name in {**meant, **dict.fromkeys(answered)} if _states(words, values[name])]
        for name in answered:
            if values[name] is not None and name not in spoken:
                raise RefusedReplyError(
                    "unstated", f"the message does not state {name} as it is written: {values[name]}"
                )
        # Two facts may have one value, or one be part of the other's: what was asked for is what is said then.
        rest = _without(words, [values[name] for name in spoken])
        stated = [name for name, value in values.items() if name in spoken or _states(rest, value)]
        new = [name for name in stated if name not in self._told and not _states(heard, values[name])]
        if len(new) > AT_MOST:
            raise RefusedReplyError("leak", f"at most {AT_MOST} facts at a time")
        for name in new:
            if name not in spoken:
                raise RefusedReplyError("leak", f"the message states {name}, which was not asked for: leave it out")
        if said["done"] and "?" in message:
            raise RefusedReplyError("early_stop", "done is true, and the assistant asked something")
        if self.profile.name != "adversarial":
            self._refuse_inventions(text, message, values)
            self._refuse_evasion(meant, stated, values)
        self._refuse_recital(_without(words, [values[name] for name in stated]))
        return Reply(text=text, revealed=tuple(dict.fromkeys((*stated, *answered))), done=said["done"])

    def _refuse_form(self, text: str) -> None:
        if not text or len(text) > _LONGEST:
            raise RefusedReplyError("malformed", f"the message must have 1 to {_LONGEST} characters")
        for tool in self.task.tools:
            if "_" in tool.name and tool.name in text:
                raise RefusedReplyError("hint", f"you know nothing of {tool.name}")

    def _refuse_inventions(self, text: str, message: str, values: Mapping[str, Json]) -> None:
        assert self.task.user is not None
        heard = " ".join(part for pair in self._conversation for part in pair.values())
        known = _plain(
            " ".join((self.task.user.context, self.task.instruction, message, heard, *map(_shown, values.values())))
        )
        for number in _NUMBER.findall(text):
            if not _states(known, number):
                raise RefusedReplyError("invention", f"{number} is nothing that you know: do not make it up")

    def _refuse_evasion(self, meant: Iterable[str], stated: Iterable[str], values: Mapping[str, Json]) -> None:
        """Of what the assistant's words ask for, one thing at least must be said, or have been said before."""
        unsaid = [name for name in meant if values[name] is not None]
        if unsaid and not {*unsaid} & {*stated, *self._told}:
            name = unsaid[0]
            raise RefusedReplyError(
                "unstated", f"the assistant asked for {name}, and the message does not state it: {values[name]}"
            )

    def _refuse_recital(self, rest: str) -> None:
        assert self.task.user is not None
        context, words = _plain(self.task.user.context), rest.split()
        if any(" ".join(words[at : at + _RECITED]) in context for at in range(len(words) - _RECITED + 1)):
            raise RefusedReplyError(
                "leak", "the message recites what you know: say in your own words what is asked for"
            )


def _schema(fact: Mapping[str, Any], quote: Mapping[str, Any], done: Mapping[str, Any]) -> dict[str, Any]:
    """Each sentence right after its fact: a model that has just named it states it far more often."""
    sentence = {"asked_by": quote, "fact": fact, "says": {"type": "string"}}
    sentences = {"type": "array", "items": exactly(sentence), "minItems": 1, "maxItems": _SENTENCES}
    return exactly({"sentences": sentences, "done": done})


def _clauses(message: str) -> list[str]:
    """The sentences of a message and their parts, the last ones: what it asks stands at its end."""
    sentences = [sentence for sentence in _END.split(message) if sentence.strip()]
    parts = (part for sentence in sentences for part in (sentence, *sentence.split(", ")))
    return list(dict.fromkeys(map(str.strip, parts)))[-_MOST_CLAUSES:]


# --- values in texts, all of which are plain: what _plain makes of them -----------------------------------------------


def _states(text: str, value: Json) -> bool:
    """Whether `text` has the value as words of its own; every element of a list. None has no words."""
    words = _words(value)
    return bool(words) and all(_whole(part).search(text) for part in words)


def _without(text: str, values: Iterable[Json]) -> str:
    """The text without these values, long ones first."""
    for part in sorted({part for value in values for part in _words(value)}, key=len, reverse=True):
        text = _whole(part).sub("|", text)
    return text


def _words(value: Json) -> list[str]:
    """A value as it is looked for in a text, by its parts."""
    if value is None:
        return []
    parts = value if isinstance(value, list | tuple) else [value]
    return [words for part in parts if (words := _plain(_shown(part)))]


@lru_cache(maxsize=65_536)
def _whole(words: str) -> re.Pattern[str]:
    """Words that are not part of longer ones. There are more values than `re` remembers patterns."""
    return re.compile(rf"(?<!\w){re.escape(words)}(?!\w)")


def _asks(heard: str, quote: str) -> bool:
    """Whether `quote` is words of what was heard, and enough of them to ask for something."""
    enough = sum(map(str.isalpha, quote)) >= _QUOTED_LETTERS
    return enough and _states(heard, quote.strip(" .,:;!?\"'"))


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def _shown(value: Json) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
