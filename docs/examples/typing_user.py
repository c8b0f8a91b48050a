"""A user of one's own: terse phrases from a list, typed in a hurry. `user.kind = "typing_user:TypingUser"`."""

from __future__ import annotations

import random
from collections.abc import Mapping

from engine.seams import Session
from engine.task import Fact, Task
from engine.types import Reply
from engine.world.offline_user import asked

PHRASES = ("its {}", "{} please", "think it was {}", "should be {} , thanks", "that would be {}")
LOST = ("sorry what do you need?", "not sure what you mean", "which detail exactly?")
_SHORT = 4


class TypingUser:
    """Opens users whose every choice follows from task and seed, so that `synth-engine verify` finds the same ones."""

    async def open(self, task: Task, seed: int, session: Session) -> TypingSession:  # noqa: ARG002 - looks at no world
        """Called only for tasks that have a user."""
        assert task.user is not None
        return TypingSession(task.user.facts, random.Random(f"{task.id}/{seed}"))


class TypingSession:
    """One episode's user."""

    def __init__(self, facts: Mapping[str, Fact], rng: random.Random) -> None:
        self._facts, self._rng = facts, rng

    async def reply(self, message: str) -> Reply:
        """At most two facts, each only if one of its keywords was asked for; `revealed` is what rubrics check."""
        revealed = tuple(asked(self._facts, message))
        if not revealed:
            return Reply(text=self._typed(self._rng.choice(LOST)))
        said = [self._typed(self._rng.choice(PHRASES)).format(self._facts[name].value) for name in revealed]
        return Reply(text=". ".join(said), revealed=revealed)

    def _typed(self, phrase: str) -> str:
        """Two letters swapped in some of the longer words; a value stays as it is, or nobody could act on it."""
        return " ".join(self._swapped(word) if self._rng.random() < 0.3 else word for word in phrase.split())

    def _swapped(self, word: str) -> str:
        if len(word) < _SHORT:
            return word
        at = self._rng.randrange(len(word) - 1)
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
