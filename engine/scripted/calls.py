"""What a request to the scripted endpoint asks for, whichever of its two routes it came by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from engine.scripted.players import Player, player
from engine.types import Json

_CHARACTERS_A_TOKEN = 4

_Body = TypeVar("_Body", bound=BaseModel)


class BadRequestError(Exception):
    """A request that is refused: HTTP 400 and a message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One prompt of a request."""

    prompt: str
    document: Mapping[str, Any] | None
    player: Player | None
    """Who answers the document."""
    limit: int | None
    """Tokens of output."""
    rid: str

    @classmethod
    def of(cls, prompt: str, document: Mapping[str, Any] | None, *, limit: int | None, rid: str) -> Self:
        """An item with its player.

        Raises RequestError naming the field where the document is not what its role reads."""
        try:
            who = None if document is None else player(document)
        except ValidationError as error:
            raise BadRequestError(f"document.{first_problem(error)}") from None
        return cls(prompt=prompt, document=document, player=who, limit=limit, rid=rid)

    @property
    def role(self) -> str:
        """`tool`, `user`, `judge`, or empty for a prompt without a document."""
        return "" if self.document is None else str(self.document["as"])


@dataclass(frozen=True, slots=True)
class ScriptedOutput:
    """The output for one item."""

    item: Item
    text: str
    finish: Literal["stop", "length"]

    @classmethod
    def of(cls, item: Item, text: str) -> Self:
        """A text, cut at the item's limit as a model's would be."""
        if item.limit is None or token_count(text) <= item.limit:
            return cls(item, text, "stop")
        return cls(item, text[: item.limit * _CHARACTERS_A_TOKEN], "length")


@dataclass(frozen=True, slots=True)
class ScriptedRequest:
    """A request that was understood: its prompts, and how their outputs become one JSON reply."""

    items: list[Item]
    reply: Callable[[list[ScriptedOutput]], Json]


class Loose(BaseModel):
    """Fields that nothing here depends on may be there; those that are declared have their types."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


def token_count(text: str) -> int:
    """A made-up count of tokens."""
    return -(-len(text) // _CHARACTERS_A_TOKEN)


def validated(model: type[_Body], raw: bytes) -> _Body:
    """A body as a value.

    Raises RequestError naming the first field that is wrong."""
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        raise BadRequestError(first_problem(error)) from None


def first_problem(error: ValidationError) -> str:
    """The first thing that is wrong, and where."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {first['msg']}" if where else str(first["msg"])
