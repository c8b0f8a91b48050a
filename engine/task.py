"""One task, as the rest of the engine sees it (docs/packs.md has its JSON).

engine.packs.pack validates packs into these values; nothing else builds them from outside data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal


class Split(StrEnum):
    """Which part of a pack a task belongs to."""

    TRAIN = "train"
    """Sampled by the scheduler."""
    VALIDATION = "validation"
    """Measured during the run; chooses adapters/best."""
    HELDOUT = "heldout"
    """Measured before and after; used for nothing else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """One mock tool."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    """JSON Schema of the arguments object."""
    outputs: Mapping[str, Any] | None = None
    """JSON Schema of the answer object."""
    effect: Mapping[str, Any] | None = None
    """``{read}``, ``{write, value, requires?}`` or ``{write: true}``; None is a read without declared source."""

    @property
    def function(self) -> dict[str, Any]:
        """The OpenAI function object shown to the agent."""
        inner = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": inner}

    @property
    def writes(self) -> bool:
        """Whether a successful call changes the world state."""
        return self.effect is not None and "write" in self.effect


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One private value that the user reveals when asked."""

    value: Any
    keywords: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class UserContext:
    """What only the user knows."""

    context: str
    facts: Mapping[str, Fact]
    style: str = ""
    escape_strategy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeededResponse:
    """An answer fixed by the task: given for ``tool(arguments)`` once the calls in ``after`` have succeeded."""

    tool: str
    arguments: Mapping[str, Any]
    answer: Any
    ok: bool = True
    after: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldSpec:
    """Initial state and seeded responses."""

    state: Mapping[str, Any] = field(default_factory=dict)
    responses: tuple[SeededResponse, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RubricItem:
    """One line of a rubric; without a check it is the judge's."""

    id: str
    text: str
    check: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rubric:
    """Forbidden behaviours x (subgoals, required interactions)."""

    forbidden: tuple[RubricItem, ...] = ()
    subgoals: tuple[RubricItem, ...] = ()
    interactions: tuple[RubricItem, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One task of a pack."""

    id: str
    instruction: str
    rubric: Rubric
    persona: str = ""
    rules: str = ""
    tools: tuple[Tool, ...] = ()
    workflow: tuple[str, ...] = ()
    user: UserContext | None = None
    world: WorldSpec = WorldSpec()
    answer: Any = None
    kind: Literal["tool_use", "math", "search"] = "tool_use"
    split: Split = Split.TRAIN
    meta: Mapping[str, Any] = field(default_factory=dict)

    def tool(self, name: str) -> Tool | None:
        """The tool of that name, or None."""
        for tool in self.tools:
            if tool.name == name:
                return tool
        return None
