"""Expected calls: as answers that a task fixes, and as schemas that say which calls count as them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from engine.importing.agenticqwen.literal import is_identifier, names_one_thing
from engine.importing.agenticqwen.source import ExpectedStep
from engine.schema.canonical import canonical, same
from engine.schema.validate import compiled_schema
from engine.task import SeededResponse, Task, Tool
from engine.types import Json, ToolCall
from engine.world.admission import admit, canonical_arguments

UNANSWERED = "no_return"
"""Their answer of a call that nobody should make."""
_FAILED = frozenset({"error", "failed", "failure"})

Known = Callable[[Json], bool]
"""Whether an agent can know a scalar value, or the rubric names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedCall:
    """A call of a path that an agent could make in the task's world."""

    tool: Tool
    arguments: Mapping[str, Any]
    """Canonical, schema defaults not filled in."""
    answer: Json
    ok: bool

    def same_call(self, other: ExpectedCall) -> bool:
        """Whether the world takes both for one call."""
        return self.tool.name == other.tool.name and same(self.filled, other.filled)

    @property
    def filled(self) -> Mapping[str, Any]:
        """The arguments with schema defaults: what checks and mapping compare."""
        return canonical_arguments(self.tool, self.arguments)

    @property
    def json(self) -> dict[str, Any]:
        """The call as a pack names it."""
        return {"tool": self.tool.name, "arguments": self.arguments}


def expected(task: Task, step: ExpectedStep) -> ExpectedCall:
    """A step of a path as a call.

    Raises engine.world.effects.RefusedError for what the task's world would not take: an unknown tool, or arguments
    outside its schema."""
    admit(task, ToolCall(name=step.tool_name, arguments=step.input))
    tool = task.tool(step.tool_name)
    assert tool is not None
    answer, ok = _answer(step.expected_output)
    return ExpectedCall(tool=tool, arguments=canonical(step.input), answer=answer, ok=ok)


def _answer(output: Json) -> tuple[Json, bool]:
    """An answer, and whether the call succeeded: an error text, a set `error`, `success` false, a failed `status`."""
    if isinstance(output, str):
        failed = output.upper().startswith("ERROR")
        return ({"error": output}, False) if failed else (output, True)
    if not isinstance(output, Mapping):
        return output, True
    failed = bool(output.get("error")) or output.get("success") is False
    return output, not failed and str(output.get("status")).lower() not in _FAILED


def shown_answer(call: ExpectedCall) -> str:
    """The answer as text, its values apart from one another."""
    return orjson.dumps(call.answer, option=orjson.OPT_INDENT_2).decode()


def responses(paths: Sequence[Sequence[ExpectedCall]]) -> tuple[list[SeededResponse], int]:
    """The answers that the paths fix, and how many contradict an earlier path in a world state that both reach.

    A call has one answer until a path gives it another: that one holds after the writes before it on that path."""
    fixed: list[tuple[ExpectedCall, SeededResponse]] = []
    contradictions = 0
    for path in paths:
        written: list[dict[str, Any]] = []
        for call in path:
            known = [made for other, made in fixed if other.same_call(call)]
            after = tuple(written) if known else ()
            if call.answer != UNANSWERED and not any(same(made.answer, call.answer) for made in known):
                if any(_alike(made.after, after) for made in known):
                    contradictions += 1
                else:
                    name, arguments = call.tool.name, call.arguments
                    made = SeededResponse(tool=name, arguments=arguments, answer=call.answer, ok=call.ok, after=after)
                    fixed.append((call, made))
            if call.tool.writes and call.ok and call.json not in written:
                written.append(call.json)
    return [made for _, made in fixed], contradictions


def _alike(left: Sequence[Mapping[str, Any]], right: Sequence[Mapping[str, Any]]) -> bool:
    return len(left) == len(right) and all(call in right for call in left)


# --- which calls count as an expected one ---------------------------------------------------------------------------


def counting_schema(call: ExpectedCall, known: Known) -> dict[str, Any]:
    """The schema of the arguments with which a call counts as the expected one.

    Values that an agent can know must be given; wording, and what the generator made up, is free. An optional argument
    of a read is free too, unless it is an identifier."""
    required = call.tool.parameters.get("required", ())
    return _object(
        {
            name: _value(value, known)
            for name, value in call.arguments.items()
            if name in required or call.tool.writes or is_identifier(value)
        }
    )


def spoiling(call: ExpectedCall, known: Known, wanted: Sequence[ExpectedCall]) -> dict[str, Any] | None:
    """The schema of the arguments with which a call counts as this one, which must not be made; None where no schema
    tells it from the wanted calls.

    The things that it names decide, whatever else is said of them; only if a wanted call names the same, all values."""
    named = {name: value for name, value in call.arguments.items() if names_one_thing(value)}
    for arguments in (named, call.arguments):
        schema = _object({name: _value(value, known) for name, value in arguments.items()})
        fits = compiled_schema(schema)
        if all(other.tool.name != call.tool.name or fits(other.filled) is not None for other in wanted):
            return schema
    return None


def _object(properties: Mapping[str, Any]) -> dict[str, Any]:
    pinned = {name: schema for name, schema in properties.items() if schema}
    return {"type": "object", "properties": pinned, "required": sorted(pinned)} if pinned else {}


def _value(value: Json, known: Known) -> dict[str, Any]:
    """The schema of a value; {} leaves it free."""
    if isinstance(value, Mapping):
        return _object({name: _value(inner, known) for name, inner in value.items()})
    if isinstance(value, list):
        members = [schema for member in value if (schema := _value(member, known))]
        if not members:
            return {}
        count = len(value)
        # In any order: a list of things to order is the same list from the other end.
        listed = [{"contains": schema} for schema in members]
        return {"type": "array", "minItems": count, "maxItems": count, "allOf": listed}
    if isinstance(value, bool):
        return {"const": value}
    if not known(value):
        return {}
    if isinstance(value, str) and not is_identifier(value):
        return {"type": "string", "pattern": f"^(?i:{re.escape(value)})$"}
    return {"const": value}


def is_open(schema: Mapping[str, Any], call: ExpectedCall) -> bool:
    """Whether some argument of a call is free, or partly free."""
    return _values(schema) < _values(_object({name: _value(v, lambda _: True) for name, v in call.arguments.items()}))


def _values(schema: Json) -> int:
    """Scalars that a schema pins."""
    if isinstance(schema, list):
        return sum(map(_values, schema))
    if not isinstance(schema, Mapping):
        return 0
    if "const" in schema or "pattern" in schema:
        return 1
    inner = schema.get("properties", schema)
    return sum(map(_values, inner.values()))
