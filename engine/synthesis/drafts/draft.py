"""The language of drafts: what a teacher, or a person, writes of a task; everything else is derived from it.

A draft has three parts, each of which a teacher writes in one answer: the *blueprint* (tools and what must not be
done), the *world* with its plan, and the *instruction*. Texts may refer to values by ``${…}``
(engine.synthesis.drafts.expressions). docs/drafts.md has a complete example.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

import orjson
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError

from engine.errors import ConfigError
from engine.types import Json


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


# --- call 1: the blueprint -------------------------------------------------------------------------------------------


class Restriction(_Part):
    """What must not be done, although it tempts."""

    tool: str = Field(description="The tool that must not be used; one of the tools.")
    arguments: Mapping[str, Json] | None = Field(
        default=None, description="JSON Schema of the arguments with which it must not be used; null: with any."
    )
    attempt: Mapping[str, Json] = Field(description="Arguments of a call that tempts, and that the world accepts.")
    reason: str = Field(description="Why, in words that the rules of the agent may use.")
    instead: str = Field(description="The tool that is permitted and serves the purpose.")


class Blueprint(_Part):
    """Tools of a small trade, and the order in which they are used."""

    workflow: tuple[str, ...] = Field(description="The steps of a good episode, a sentence each.")
    tools: tuple[Mapping[str, Json], ...] = Field(description="Tools as a pack has them, with outputs and effects.")
    restriction: Restriction | None = Field(default=None, description="What must not be done.")


# --- call 2: the world and the plan ----------------------------------------------------------------------------------


class DraftFact(_Part):
    """A value that only the user knows."""

    type: str = Field(default="fixed", description="How the value can be drawn anew.")
    value: Json = Field(description="What is right.")
    wrong: Json = Field(description="What somebody who does not ask would take; the plan runs to its end with it.")
    say: str = Field(description="How a person words the value.")
    questions: tuple[str, ...] = Field(min_length=1, description="Ways to ask for it; each asks for nothing else.")
    because: str = Field(
        description="Why it must be asked for: TOOL.PARAMETER, STEP/POINTER of an answer, or words of the rules."
    )


class PublicValue(_Part):
    """A value that the agent may see; typed, so that it can be drawn anew."""

    type: str = Field(description="How the value can be drawn anew.")
    value: Json = Field(description="The value.")


class AskStep(_Part):
    """Asks the user for a fact."""

    id: str = Field(description="Unique within the plan.")
    ask: str = Field(description="The fact.")
    names: Mapping[str, Json] = Field(
        default={}, description="What the question must say first, by label: the price of what is agreed to."
    )


class CallStep(_Part):
    """Calls a tool."""

    id: str = Field(description="Unique within the plan, but for the two sides of a branch.")
    call: str = Field(description="The tool.")
    arguments: Mapping[str, Json] = Field(description="An expression for each argument.")
    optional: bool = Field(default=False, description="Whether a good episode may leave it out.")
    after: tuple[str, ...] = Field(default=(), description="Steps that must come before, where the order matters.")


class BranchStep(_Part):
    """Goes one of two ways."""

    condition: Mapping[str, Json] = Field(alias="if", description="A condition.")
    then: tuple[PlanStep, ...] = Field(description="Steps if it holds.")
    otherwise: tuple[PlanStep, ...] = Field(default=(), alias="else", description="Steps if it does not.")


class AnswerStep(_Part):
    """Ends the episode with an answer."""

    answer: Mapping[str, Json] = Field(
        min_length=1, description="What is told, by label; a list of expressions is told in one place."
    )


_KINDS = ("ask", "call", "if", "answer")


def _kind(value: Json) -> str | None:
    """The kind of a step that is given as JSON, by the key that only it has."""
    return next((kind for kind in _KINDS if kind in value), None) if isinstance(value, Mapping) else None


PlanStep = Annotated[
    Annotated[AskStep, Tag("ask")]
    | Annotated[CallStep, Tag("call")]
    | Annotated[BranchStep, Tag("if")]
    | Annotated[AnswerStep, Tag("answer")],
    Discriminator(
        _kind,
        custom_error_type="step",
        custom_error_message="a step has one of the keys ask, call, if, answer",
    ),
]
"""A step of a plan."""


class DraftResponse(_Part):
    """An answer that the task fixes, for a tool without effect; texts may refer to values."""

    tool: str = Field(description="A tool.")
    arguments: Mapping[str, Json] = Field(description="The arguments.")
    answer: Json = Field(description="What the tool says.")


class DraftWorld(_Part):
    """State, facts and the plan that a perfect agent follows."""

    state: Mapping[str, Json] = Field(description="What the tools read and write, with rows that mislead.")
    public: Mapping[str, PublicValue] = Field(default={}, description="Values that the agent may see, by name.")
    facts: Mapping[str, DraftFact] = Field(description="What only the user knows, by name.")
    responses: tuple[DraftResponse, ...] = Field(default=(), description="Answers of tools without effect.")
    plan: tuple[PlanStep, ...] = Field(min_length=1, description="The steps; the last one answers.")


# --- call 3: the instruction -----------------------------------------------------------------------------------------


class DraftInstruction(_Part):
    """What the two sides are told."""

    instruction: str = Field(description="One sentence that a person would say; no tool, no step, no private value.")
    background: str = Field(description="What the user knows, with ${fact} or ${fact|words} for every fact.")
    rules: str = Field(description="What the agent must keep to; it names what is restricted.")
    style: str = Field(default="", description="How the user speaks.")
    escape_strategy: str = Field(default="", description="What the user tries in order to get what the rules forbid.")


class Draft(_Part):
    """A draft of one task."""

    id: str = Field(min_length=1, description="Unique within its file; the id of the task.")
    persona: str = Field(default="", description="Who the user is.")
    trade: str = Field(default="", description="The trade that the task is of: all of one trade go to one split.")
    blueprint: Blueprint
    world: DraftWorld
    instruction: DraftInstruction


Step = AskStep | CallStep | BranchStep | AnswerStep


def read_drafts(path: Path) -> list[Draft]:
    """Returns the drafts of a file: JSON Lines, a JSON array, or one JSON object.

    Raises ConfigError that names file, draft and field."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; check the path") from error
    drafts = [_draft(path, place, value) for place, value in _values(path, content)]
    if not drafts:
        raise ConfigError(f"{path}: no drafts; docs/drafts.md has one to begin with")
    twice = {id_ for id_, count in Counter(draft.id for draft in drafts).items() if count > 1}
    if twice:
        raise ConfigError(f"{path}: {len(twice)} ids are there twice, such as {min(twice)!r}; rename one")
    return drafts


def _values(path: Path, content: bytes) -> Iterator[tuple[str, Json]]:
    """The values of a file, each with its place."""
    try:
        whole = orjson.loads(content)
    except orjson.JSONDecodeError:
        for number, line in enumerate(content.splitlines(), 1):
            if line.strip():
                try:
                    yield f"line {number}", orjson.loads(line)
                except orjson.JSONDecodeError as error:
                    raise ConfigError(f"{path}: line {number}: not JSON: {error}; one draft a line") from error
    else:
        yield from ((f"[{index}]", value) for index, value in enumerate(whole if isinstance(whole, list) else [whole]))


def _draft(path: Path, place: str, value: Json) -> Draft:
    try:
        return Draft.model_validate(value)
    except ValidationError as problem:
        first, name = problem.errors()[0], value.get("id") if isinstance(value, Mapping) else None
        field = ".".join(map(str, _without_tags(first["loc"])))
        raise ConfigError(
            f"{path}: {place}{f' ({name})' if isinstance(name, str) else ''}: {field}: {first['msg']}; "
            "docs/drafts.md has a complete draft"
        ) from problem


def _without_tags(place: tuple[str | int, ...]) -> Iterator[str | int]:
    """The place of an error as the file has it: the kind of a step stands behind its number, and is no field."""
    for before, part in zip(("", *place), place, strict=False):
        if not (part in _KINDS and isinstance(before, int)):
            yield part
