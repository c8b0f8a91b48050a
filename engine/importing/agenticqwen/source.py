r"""The AgenticQwen task format: one object a task, its prompt taken apart.

::

    {"id", "prompt": [{"role": "system", "content": "<policy>…</policy> requirements # Tools <tools>…</tools>"},
                      {"role": "user", "content": "opening request\nNote: …"}],
     "task_background", "rubrics", "test_policy", "user_escape_strategy",
     "tool_return_expected": {"normal_path": [{"tool_name", "input", "expected_output"}], "hack_path": […]}}
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
import pydantic

from engine.importing.format import UnreadableError
from engine.packs.problems import Found, nesting_problems
from engine.types import Json

TRANSFER = "###TRANSFER_TO_HUMAN"
"""The text with which an agent of theirs hands over."""

_STRICT = pydantic.ConfigDict(strict=True, frozen=True, extra="forbid")


class PromptMessage(pydantic.BaseModel):
    """One message of the prompt."""

    model_config = _STRICT
    role: str
    content: str


class ExpectedStep(pydantic.BaseModel):
    """One expected call."""

    model_config = _STRICT
    tool_name: str
    input: dict[str, Any]
    expected_output: Any


class ExpectedPaths(pydantic.BaseModel):
    """What an agent does that keeps the policy, and what one does that falls for the user's trick."""

    model_config = _STRICT
    normal_path: list[ExpectedStep]
    hack_path: list[ExpectedStep]


class SourceTask(pydantic.BaseModel):
    """One task as the file holds it."""

    model_config = _STRICT
    id: str
    prompt: list[PromptMessage]
    task_background: str
    rubrics: str
    test_policy: str
    user_escape_strategy: str
    tool_return_expected: ExpectedPaths


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptParts:
    """The parts of a prompt."""

    policy: str
    residue: bool
    """Whether the policy began with its generator's notes, which were cut."""
    requirements: str
    tools: tuple[Mapping[str, Any], ...]
    """Function objects: name, description, parameters, outputs."""
    request: str
    note: str
    """Instructions of their harness behind the request."""


def source_task(value: Json) -> SourceTask:
    """One task of the file.

    Raises UnreadableError for fields that are missing, unknown or ill-typed."""
    nested = list(nesting_problems(value))
    if nested:
        raise UnreadableError(nested)
    try:
        return SourceTask.model_validate(value)
    except pydantic.ValidationError as error:
        remedy = "give every field of the AgenticQwen format, and no other (docs/agenticqwen.md)"
        raise UnreadableError(
            [Found(_place(item["loc"]), item["msg"], remedy) for item in error.errors(include_url=False)]
        ) from error


def _place(location: tuple[int | str, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).removeprefix(".")


def prompt_parts(task: SourceTask) -> PromptParts:
    """The prompt of a task, taken apart.

    Raises UnreadableError where a part is missing, or a line of its tools is no function."""
    system = "\n".join(message.content for message in task.prompt if message.role == "system")
    requests = [message.content for message in task.prompt if message.role == "user"]
    before, policy_end, rest = system.partition("</policy>")
    _, policy_start, policy = before.partition("<policy>")
    # The text before the tools speaks of <tools></tools> too: the last pair is the block itself.
    before, tools_end, _ = rest.rpartition("</tools>")
    between, tools_start, block = before.rpartition("<tools>")
    found = {"<policy>": policy_start, "</policy>": policy_end, "<tools>": tools_start, "</tools>": tools_end}
    if missing := [tag for tag, there in found.items() if not there]:
        reason = f"the system message has no {', '.join(missing)}"
        raise UnreadableError([Found("prompt", reason, "keep the prompt as it was made: a policy, then tools")])
    if len(requests) != 1:
        raise UnreadableError([Found("prompt", f"has {len(requests)} user messages", "give the opening request alone")])
    residue, tag, kept = policy.rpartition("<natural_language_policy>")
    request, _, note = requests[0].partition("\nNote: ")
    return PromptParts(
        policy=kept.replace("</natural_language_policy>", "").strip(),
        residue=bool(tag and residue.strip()),
        requirements=re.split(r"^# Tools\b|<tools>", between, maxsplit=1, flags=re.MULTILINE)[0].strip(),
        tools=tuple(_functions(block)),
        request=request.strip(),
        note=note.strip(),
    )


def _functions(block: str) -> Iterator[Mapping[str, Any]]:
    problems: list[Found] = []
    for number, line in enumerate(filter(None, map(str.strip, block.splitlines())), 1):
        field = f"prompt.tools line {number}"
        remedy = 'one {"type": "function", "function": {"name", "description", "parameters", "outputs"}} a line'
        try:
            value = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            problems.append(Found(field, f"not JSON: {error}", remedy))
            continue
        function: Json = value.get("function") if isinstance(value, Mapping) else None
        if reason := _no_function(function):
            problems.append(Found(field, reason, remedy))
        else:
            yield function
    if problems:
        raise UnreadableError(problems)


def _no_function(value: Json) -> str:
    """Why a value is no function object; empty if it is one."""
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        return "has no function with a name"
    if unknown := value.keys() - {"name", "description", "parameters", "outputs"}:
        return f"the function has unknown members: {', '.join(sorted(unknown))}"
    if not isinstance(value.get("description", ""), str):
        return "description must be a string"
    wrong = [part for part in ("parameters", "outputs") if not isinstance(value.get(part, {}), Mapping)]
    return f"{wrong[0]} must be an object" if wrong else ""
