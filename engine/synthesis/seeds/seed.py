"""A seed: what a teacher writes tasks about."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from typing import Any

import orjson

from engine.importing.report import Note
from engine.packs.pack import tool_json
from engine.task import Tool

_DIGITS = 12


class SeedKind(StrEnum):
    """What a seed holds."""

    PERSONA = "persona"
    """A person, for whom a teacher thinks of tools."""
    DOMAIN = "domain"
    """Tools and perhaps rules, for which a teacher thinks of persons."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seed:
    """One seed."""

    id: str
    """Of the file, or made of the content; never of the place in a file."""
    kind: SeedKind
    trade: str = ""
    """By what seeds are split into training and held-out tasks; empty where none is named."""
    persona: str = ""
    """One or two sentences about a person."""
    tools: tuple[Tool, ...] = ()
    """What the user's own domain offers, without effects where its source has none."""
    policy: str = ""
    """The rules of the domain, as its owner wrote them."""

    def json(self) -> dict[str, Any]:
        """The seed as JSON, without what it does not have; tools as a pack holds them."""
        text = {"id": self.id, "kind": self.kind.value, "trade": self.trade, "persona": self.persona}
        full = text | {"tools": [tool_json(tool) for tool in self.tools], "policy": self.policy}
        return {name: value for name, value in full.items() if value}


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedFile:
    """What a file was recognised as."""

    path: str
    form: str
    """In words: `personas, one a line`."""
    seeds: tuple[Seed, ...]
    notes: tuple[Note, ...]
    """What was rewritten (`kept`), and what is not part of any seed."""

    def json(self) -> dict[str, Any]:
        """All of it as JSON."""
        notes = [{"place": n.field, "what": n.became, "kept": n.kept, "count": n.count} for n in self.notes]
        return {
            "file": self.path, "form": self.form, "seeds": [seed.json() for seed in self.seeds], "notes": notes,
        }  # fmt: skip


def persona_seed(persona: str, trade: str = "", given: str = "") -> Seed:
    """A seed of a person, under the id that its file gives or else one of its content."""
    made = given or _id("persona", {"persona": persona, "trade": trade})
    return Seed(id=made, kind=SeedKind.PERSONA, trade=trade, persona=persona)


def domain_seed(tools: tuple[Tool, ...], trade: str, policy: str) -> Seed:
    """A seed of a domain, under an id of its content, whatever the order of the tools."""
    listed = sorted((tool_json(tool) for tool in tools), key=lambda tool: tool["function"]["name"])
    made = _id("domain", {"tools": listed, "trade": trade, "policy": policy})
    return Seed(id=made, kind=SeedKind.DOMAIN, trade=trade, tools=tools, policy=policy)


def one_line(text: str) -> str:
    """Text of a file on one line, with a stand-in for each character that a terminal would obey."""
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in " ".join(text.split())
    )


def _id(kind: str, content: dict[str, Any]) -> str:
    return f"{kind}-{sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).hexdigest()[:_DIGITS]}"
