"""What a task of a pack must satisfy beyond its shape, so that no episode meets it for the first time."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from engine.reward.check_kinds import Names, check_problems
from engine.schema import pointer
from engine.schema.canonical import odd
from engine.schema.draw import undrawable
from engine.schema.legible import printable
from engine.schema.recordable import deeper_than
from engine.schema.validate import SchemaProblem, argument_problems, schema_problems
from engine.task import Task, Tool
from engine.types import Json, ToolCall
from engine.world import effects
from engine.world.admission import admit

DEPTH = 64
"""Levels to which a task may nest, and tokens of a pointer: whatever is made of it can be walked and written."""
_CHECKS = "`synth-engine pack schema` has the checks, docs/packs.md#checks explains them"
TOOL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong with a pack."""

    path: str
    line: int
    """0 where the file as a whole is meant."""
    task: str
    field: str
    reason: str
    remedy: str

    def __str__(self) -> str:
        """``pack.jsonl:12: task tiny-0001: tools[0].effect.read: reason (remedy)``."""
        parts = [f"{self.path}:{self.line}" if self.line else self.path]
        parts += [f"task {self.task}"] if self.task else []
        parts += [self.field] if self.field else []
        text = ": ".join([*parts, f"{self.reason} ({self.remedy})"])
        # Texts of a pack are anybody's: what a terminal would obey is shown as an escape.
        return printable(text, kept="")


class Found(NamedTuple):
    """A problem before its place in a file is known: field, reason, remedy."""

    field: str
    reason: str
    remedy: str


def nesting_problems(value: Json) -> Iterator[Found]:
    """Members of a task's JSON object that nest too deeply to be looked at."""
    if not deeper_than(DEPTH, value):
        return
    for name, inner in value.items() if isinstance(value, Mapping) else [("", value)]:
        if deeper_than(DEPTH - 1, inner):
            yield Found(name, f"nests deeper than {DEPTH} levels, the task's own included", "flatten it")


def task_problems(task: Task) -> Iterator[Found]:
    """Everything that is wrong with a well-shaped task."""
    for name, value in (("id", task.id), ("instruction", task.instruction)):
        if not value.strip():
            yield Found(name, "is empty", "every task has one")
    yield from _duplicates("tools", [tool.name for tool in task.tools])
    broken = False
    for index, tool in enumerate(task.tools):
        for found in tool_problems(tool, f"tools[{index}]"):
            broken = True
            yield found
    yield from _user(task)
    if not broken:
        yield from _responses(task)
        yield from _state(task)
    yield from _rubric(task)


def _duplicates(field: str, names: list[str]) -> Iterator[Found]:
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield Found(field, f"{name!r} occurs twice", "names are unique")


def tool_problems(tool: Tool, field: str) -> Iterator[Found]:
    """Everything that is wrong with a tool by itself; `field` is its place in what errors name."""
    if not TOOL_NAME.fullmatch(tool.name):
        yield Found(f"{field}.name", f"{tool.name!r} is no function name", "at most 64 letters, digits, '_', '-', '.'")
    parts = {"parameters": (tool.parameters, argument_problems), "outputs": (tool.outputs, _output_problems)}
    for part, (schema, problems) in parts.items():
        if schema is None:
            continue
        for problem in problems(schema):
            yield Found(f"{field}.{part}.{problem.path}", problem.reason, "give a JSON Schema (draft 2020-12)")
        if schema.get("type", "object") != "object":
            yield Found(f"{field}.{part}.type", "must be 'object'", f"describe the {part} as one object")
        if not isinstance(schema.get("properties", {}), Mapping):
            return
    if tool.effect is not None:
        yield from _effect(tool, tool.effect, f"{field}.effect")


def _output_problems(schema: Json) -> Iterable[SchemaProblem]:
    return schema_problems(schema) or undrawable(schema)


def _effect(tool: Tool, effect: Mapping[str, Any], field: str) -> Iterator[Found]:
    keys = frozenset(effect)
    if keys == {"read"}:
        yield from _pointer(tool, effect["read"], f"{field}.read")
    elif keys == {"write"} and effect["write"] is True:
        return
    elif {"write", "value"} <= keys <= {"write", "value", "requires"}:
        yield from _pointer(tool, effect["write"], f"{field}.write")
        if effect["write"] == "":
            yield Found(f"{field}.write", "would replace the whole state", "point at a member")
        yield from _template(tool, effect["value"], f"{field}.value")
        yield from _requires(tool, effect.get("requires", {}), f"{field}.requires")
    else:
        shapes = "{read: pointer}, {write: pointer, value: template, requires?: {pointer: template}} or {write: true}"
        yield Found(field, f"has the keys {', '.join(sorted(keys)) or '(none)'}", f"an effect is {shapes}")


def _requires(tool: Tool, requires: Json, field: str) -> Iterator[Found]:
    if not isinstance(requires, Mapping):
        yield Found(field, "must be an object", "map pointers to templates")
        return
    for where, template in requires.items():
        yield from _pointer(tool, where, f"{field}.{where}")
        yield from _template(tool, template, f"{field}.{where}")
        if reason := odd(template):
            yield Found(f"{field}.{where}", reason, "what is required is compared with arguments")


def _pointer(tool: Tool, value: Json, field: str) -> Iterator[Found]:
    if not isinstance(value, str):
        yield Found(field, "must be a string", "give a JSON Pointer such as /orders/{id}")
        return
    try:
        if len(pointer.parse_pointer(value)) > DEPTH:
            yield Found(field, f"has more than {DEPTH} tokens", "keep the state flatter")
    except ValueError as error:
        yield Found(field, str(error), "give a JSON Pointer (RFC 6901)")
    yield from _template(tool, value, field)


def _template(tool: Tool, template: Json, field: str) -> Iterator[Found]:
    declared = tool.parameters.get("properties", {})
    for name in effects.template_placeholders(template):
        if name not in declared:
            known = ", ".join(declared) or "(none)"
            yield Found(field, f"{{{name}}} is no parameter of {tool.name}", f"its parameters: {known}")


def _user(task: Task) -> Iterator[Found]:
    if task.user is None:
        return
    if task.kind != "tool_use":
        yield Found("user", f"a {task.kind} task has no user", "set it to null")
    for name, fact in task.user.facts.items():
        field = f"user.facts.{name}"
        if not fact.keywords or not all(keyword.strip() for keyword in fact.keywords):
            yield Found(f"{field}.keywords", "without a keyword it can never be asked for", "give at least one word")


def _responses(task: Task) -> Iterator[Found]:
    for index, seeded in enumerate(task.world.responses):
        field = f"world.responses[{index}]"
        yield from _call(task, {"tool": seeded.tool, "arguments": seeded.arguments}, field)
        for number, call in enumerate(seeded.after):
            where = f"{field}.after[{number}]"
            yield from _call(task, call, where, writes=True)


def _state(task: Task) -> Iterator[Found]:
    """Names that no placeholder leads to, and required values that no argument equals."""
    for field, key in _keys(task.world.state, "world.state"):
        if reason := odd(key):
            yield Found(field, reason, "a pointer gets there through arguments")
    for where in {where: None for tool in task.tools for where in (tool.effect or {}).get("requires", {})}:
        try:
            reason = odd(pointer.read_pointer(task.world.state, pointer.parse_pointer(where)))
        except pointer.MissingError:
            continue
        if reason:
            yield Found(f"world.state{where}", reason, "a tool requires an argument to equal it")


def _keys(value: Json, field: str) -> Iterator[tuple[str, str]]:
    """Every name inside a JSON value, with the pointer-like place of what holds it."""
    members = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in members:
        if isinstance(name, str):
            yield field, name
        yield from _keys(inner, f"{field}/{name}")


def _call(task: Task, call: Mapping[str, Any], field: str, *, writes: bool = False) -> Iterator[Found]:
    name, arguments = call.get("tool"), call.get("arguments")
    if call.keys() != {"tool", "arguments"} or not isinstance(name, str) or not isinstance(arguments, Mapping):
        yield Found(field, "is no call", 'a call is {"tool": "...", "arguments": {...}}')
        return
    try:
        admit(task, ToolCall(name=name, arguments=arguments))
    except effects.RefusedError as error:
        yield Found(field, str(error), "only calls that an agent could make are ever looked up")
        return
    tool = task.tool(name)
    if writes and tool is not None and not tool.writes:
        yield Found(f"{field}.tool", f"{name} does not write", "a world state is what write calls made of it")


def _rubric(task: Task) -> Iterator[Found]:
    rubric = task.rubric
    parts = {"forbidden": rubric.forbidden, "subgoals": rubric.subgoals, "interactions": rubric.interactions}
    if not rubric.subgoals and not rubric.interactions:
        yield Found("rubric", "has neither subgoals nor interactions: doing nothing would pass", "add at least one")
    yield from _duplicates("rubric", [item.id for items in parts.values() for item in items])
    facts = frozenset(task.user.facts) if task.user else frozenset[str]()
    names = Names(frozenset(tool.name for tool in task.tools), facts)
    for part, items in parts.items():
        for index, item in enumerate(items):
            if item.check is None:
                continue
            for where, reason in check_problems(item.check, names):
                field = f"rubric.{part}[{index}].check{where}"
                yield Found(field, reason, _CHECKS)
