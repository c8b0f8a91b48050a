"""The offline user: reveals a private fact when one of its keywords occurs in what the agent says."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from functools import lru_cache

from engine.core.seams import Session
from engine.errors import UserError
from engine.task import Fact, Task, UserContext
from engine.types import Json, Reply

AT_MOST = 2
UNSURE = "I am not sure what you mean."


@lru_cache(maxsize=65_536)
def _asked(keywords: tuple[str, ...]) -> re.Pattern[str]:
    """Any of the keywords as a whole word; white space inside a keyword matches any run of it."""
    words = (r"\s+".join(map(re.escape, unicodedata.normalize("NFC", keyword).split())) for keyword in keywords)
    return re.compile(rf"(?<!\w)(?:{'|'.join(words)})(?!\w)", re.IGNORECASE)


def asked(facts: Mapping[str, Fact], message: str) -> dict[str, str]:
    """The facts that a message asks for, at most two in their own order, each with the words (in NFC) that ask."""
    heard = unicodedata.normalize("NFC", message)
    found = ((name, _asked(fact.keywords).search(heard)) for name, fact in facts.items())
    return dict([(name, match[0]) for name, match in found if match][:AT_MOST])


def offline_reply(user: UserContext, message: str) -> Reply:
    """The reply to one message: at most two facts, in the order in which the task lists them."""
    revealed = tuple(asked(user.facts, message))
    if not revealed:
        return Reply(text=UNSURE)
    return Reply(text=" ".join(sentence(name, user.facts[name].value) for name in revealed), revealed=revealed)


def sentence(name: str, value: Json) -> str:
    """What reveals one fact."""
    return f"The {name.replace('_', ' ')} is {_shown(value)}."


def _shown(value: Json) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


class OfflineUserSession:
    """One episode's offline user."""

    def __init__(self, user: UserContext) -> None:
        self._user = user

    async def reply(self, message: str) -> Reply:
        """Answer the agent; the same message always gets the same reply."""
        return offline_reply(self._user, message)


class OfflineUser:
    """Opens offline users; deterministic, so the seed changes nothing."""

    async def open(self, task: Task, seed: int, session: Session) -> OfflineUserSession:  # noqa: ARG002 - the seam's
        """A user with the task's private context.

        Raises UserError for a task without a user."""
        if task.user is None:
            raise UserError(f"task {task.id} has no user")
        return OfflineUserSession(task.user)
