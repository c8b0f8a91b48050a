"""The offline user: reveals a private fact when one of its keywords occurs in what the agent says."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from engine.errors import UserError
from engine.seams import Session
from engine.task import Fact, Task, UserContext
from engine.types import Json, Reply

AT_MOST = 2
UNSURE = "I am not sure what you mean."


@lru_cache(maxsize=65_536)
def _asked(keywords: tuple[str, ...]) -> re.Pattern[str]:
    """Any of the keywords as a whole word; white space inside a keyword matches any run of it."""
    words = (r"\s+".join(map(re.escape, unicodedata.normalize("NFC", keyword).split())) for keyword in keywords)
    return re.compile(rf"(?<!\w)(?:{'|'.join(words)})(?!\w)", re.IGNORECASE)


def reply(user: UserContext, message: str) -> Reply:
    """The reply to one message: at most two facts, in the order in which the task lists them."""
    heard = unicodedata.normalize("NFC", message)
    asked = [(name, fact) for name, fact in user.facts.items() if _asked(fact.keywords).search(heard)][:AT_MOST]
    if not asked:
        return Reply(text=UNSURE)
    text = " ".join(_sentence(name, fact) for name, fact in asked)
    return Reply(text=text, revealed=tuple(name for name, _ in asked))


def _sentence(name: str, fact: Fact) -> str:
    return f"The {name.replace('_', ' ')} is {_shown(fact.value)}."


def _shown(value: Json) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


class OfflineUserSession:
    """One episode's offline user."""

    def __init__(self, user: UserContext) -> None:
        self._user = user

    async def reply(self, message: str) -> Reply:
        """Answer the agent; the same message always gets the same reply."""
        return reply(self._user, message)


class OfflineUser:
    """Opens offline users; deterministic, so the seed changes nothing."""

    async def open(self, task: Task, seed: int, session: Session) -> OfflineUserSession:  # noqa: ARG002 - the seam's
        """A user with the task's private context.

        Raises UserError for a task without a user."""
        if task.user is None:
            raise UserError(f"task {task.id} has no user")
        return OfflineUserSession(task.user)
