"""What a simulator or judge asks a language model, and what it gets back.

A question is one JSON document behind instructions, and is answered by one JSON object. Its *subject* says what is
asked, whatever the wording: the same subject has the same answer for the whole run (engine.llm.journal).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

from engine.schema.canonical import canonical_bytes, compact
from engine.types import ChatMessage, Json

_T = TypeVar("_T")

Role = Literal["tool", "user", "judge"]
"""Who is played."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelQuestion:
    """One thing to ask, of whichever model plays the role."""

    role: Role
    task: str
    owner: str
    """Whose turn it is in the queue: calls of one owner wait for each other, those of several take turns."""
    about: tuple[Json, ...]
    """What is asked, whatever the wording; whoever asks apart from others says so here."""
    instructions: str
    document: Mapping[str, Any]
    """What the model sees; its first key, `as`, names the role."""
    schema: Mapping[str, Any]
    """JSON Schema of the object that answers: the role's contract, by which replies are read, recorded ones too."""
    held_to: Mapping[str, Any] | None = None
    """A narrower schema that servers sample by: the choices that this document leaves. None for `schema` itself."""
    subject: str = field(init=False)
    """Hex digest of `about`: the name under which the answer is kept."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "subject", subject(*self.about))

    @property
    def messages(self) -> tuple[ChatMessage, ...]:
        """The conversation that asks it."""
        system = {"role": "system", "content": self.instructions}
        return system, {"role": "user", "content": compact(self.document)}


def subject(*parts: Json) -> str:
    """The subject of a question that `parts` describe: hex digest of their canonical form."""
    return sha256(canonical_bytes(list(parts))).hexdigest()


def exactly(properties: Mapping[str, Any]) -> dict[str, Any]:
    """JSON Schema of an object that has all of these properties, and no other."""
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }


def one_of(type_: str, values: Sequence[Json]) -> dict[str, Any]:
    """JSON Schema of one of these values, all of one JSON type, or null.

    Every choice names its type, as OpenAI's strict mode wants it; llama-cpp-python drops an enum beside two types."""
    choices = [{"type": type_, "enum": list(values)}] if values else []
    return {"anyOf": [*choices, {"type": "null"}]}


class ChatPrompt(NamedTuple):
    """A question, or the repetition of one, as an endpoint takes it."""

    messages: tuple[ChatMessage, ...]
    schema: Mapping[str, Any]
    temperature: float


class Completed(NamedTuple):
    """What an endpoint said, and what it cost."""

    text: str
    prompt_tokens: int
    completion_tokens: int


class RefusedReplyError(Exception):
    """A reply that breaks its contract; the model is told `reason` and asked again. `kind` is what it is counted as."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind, self.reason = kind, reason


Admit = Callable[[Json, Mapping[str, Any]], _T]
"""What a caller makes of a reply to a document; raises RefusedReplyError where the reply breaks its contract.

The document of a recorded answer is the one that was asked then: who else was in the world may differ now."""


class Asker(Protocol):
    """Gets questions answered."""

    async def ask(self, question: ModelQuestion, admit: Admit[_T]) -> _T:
        """What `admit` makes of the reply; where it refuses it, the model is asked again.

        Raises the error of the question's role (ToolError, UserError, RewardError) when nothing helps."""
        ...
