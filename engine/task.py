"""One task, as the rest of the engine sees it (docs/packs.md has its JSON).

engine.packs.pack validates packs into these values; nothing else builds them from outside data. What is said here of a
field is what `synth-engine pack schema` and docs/packs.md say of it.
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
    """What the agent calls it; unique within the task."""
    description: str
    """What the agent is told that it does."""
    parameters: Mapping[str, Any]
    """JSON Schema of the arguments object; a default is filled in where an argument is absent."""
    outputs: Mapping[str, Any] | None = None
    """JSON Schema of the answer object; what the effect does not say of it, a simulator makes up."""
    effect: Mapping[str, Any] | None = None
    """What a call reads from the state of the world, or writes to it; without, a read whose answer is made up."""

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
    """What the user says; a list is said with commas."""
    keywords: tuple[str, ...]
    """Words or phrases, at least one; a question with one of them, as a whole word in any case, asks for the fact."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UserContext:
    """What only the user knows."""

    context: str
    """What the user knows and wants, in prose; a language model that plays the user or a tool is told it."""
    facts: Mapping[str, Fact]
    """What the user tells when asked, by name; at most two in one reply, the first ones."""
    style: str = ""
    """How the user speaks; for a language model."""
    escape_strategy: str = ""
    """What the user tries in order to get what the rules forbid; for a language model that plays it so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeededResponse:
    """An answer fixed by the task: given for `tool(arguments)` once the calls in `after` have succeeded."""

    tool: str
    """A tool of the task."""
    arguments: Mapping[str, Any]
    """Arguments that the tool's parameters admit."""
    answer: Any
    """What the agent sees, any JSON."""
    ok: bool = True
    """Whether the world accepts the call; one that it refuses writes nothing."""
    after: tuple[Mapping[str, Any], ...] = ()
    """Calls of tools that write, in any order; of several responses that fit, the one with the most holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldSpec:
    """Initial state and seeded responses."""

    state: Mapping[str, Any] = field(default_factory=dict)
    """The object that effects read and write; every episode begins with it."""
    responses: tuple[SeededResponse, ...] = ()
    """Answers fixed by the task; they go before what effects say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RubricItem:
    """One line of a rubric; without a check it is the judge's."""

    id: str
    """Unique within the rubric."""
    text: str
    """What is meant, in words: for people, and for a judge where there is no check."""
    check: Mapping[str, Any] | None = None
    """What code decides the item by; without, a judge decides it (`scorer.judge`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rubric:
    """What an episode is scored by; at least one subgoal or interaction."""

    forbidden: tuple[RubricItem, ...] = ()
    """What must not happen: one item that is met makes the reward 0."""
    subgoals: tuple[RubricItem, ...] = ()
    """What must be reached."""
    interactions: tuple[RubricItem, ...] = ()
    """What must be asked of the user, or said to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One task of a pack."""

    id: str
    """Unique within the pack; not empty."""
    instruction: str
    """The first message to the agent, not empty; the less it says, the more the agent has to ask."""
    rubric: Rubric
    """What an episode is scored by."""
    persona: str = ""
    """Who the user is; for a language model that plays it."""
    rules: str = ""
    """What the agent must keep to: its system message holds it."""
    tools: tuple[Tool, ...] = ()
    """What the agent can call."""
    workflow: tuple[str, ...] = ()
    """The steps of a good episode, for people; no agent, user or judge sees them."""
    user: UserContext | None = None
    """What only the user knows; null: nobody answers questions."""
    world: WorldSpec = WorldSpec()
    """What the tools read and write."""
    answer: Any = None
    """The right answer of a math or search task, for people and other programs: the rubric decides what counts."""
    kind: Literal["tool_use", "math", "search"] = "tool_use"
    """What kind of task it is; math and search tasks have no user."""
    split: Split = Split.TRAIN
    """What it is for: training; measuring during a run, which chooses the best adapter; measuring before and after."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """Anything else, kept and never shown; `gold` is the script of a perfect episode (docs/packs.md)."""

    def tool(self, name: str) -> Tool | None:
        """The tool of that name, or None."""
        for tool in self.tools:
            if tool.name == name:
                return tool
        return None
