"""What the effects of a task can reach: every value that a pointer may lead to, in any state that calls make.

Nothing is played. A placeholder stands for any argument, and any write that can succeed may have come before: what is
reached here may be reached by no episode, but what is not reached here is reached by none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from engine.schema.canonical import compact, same
from engine.schema.pointer import parse_pointer
from engine.task import Task, Tool
from engine.types import Json
from engine.world.effects import TEMPLATE_PLACEHOLDER, fill, template_placeholders

_ANY: Mapping[str, Json] = {}
"""No argument is known."""
_APPEND = "-"
_SHOWN = 60
"""Characters of a value in a sentence."""


def shown(value: Json) -> str:
    """A value in a sentence, cut where it is long."""
    text = compact(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


class Reached(NamedTuple):
    """A value that a pointer may lead to."""

    value: Json
    writer: Tool | None = None
    """The tool whose write fills `value`, which is a template then; None for what the state begins with."""

    @property
    def parameter(self) -> Mapping[str, Any] | None:
        """The schema of the argument that the value is, where a template says nothing but that."""
        if self.writer is None or not isinstance(self.value, str):
            return None
        whole = TEMPLATE_PLACEHOLDER.fullmatch(self.value)
        schema = self.writer.parameters["properties"][whole[1]] if whole else None
        return schema if schema is None or isinstance(schema, Mapping) else {}

    @property
    def is_open(self) -> bool:
        """Whether arguments decide the value, or a part of it."""
        return self.writer is not None and any(True for _ in template_placeholders(self.value))

    def holds_members(self) -> bool:
        """Whether it may be an object or an array."""
        schema = self.parameter
        if schema is None:
            return isinstance(self.value, Mapping | list)
        types = schema.get("type", "object")
        return not {"object", "array"}.isdisjoint([types] if isinstance(types, str) else types)

    def members(self, token: str) -> Iterator[Reached]:
        """What a token of a pointer may lead to inside of it."""
        value, writer = self
        if isinstance(value, Mapping):
            if writer is None and not _is_wild(token):
                yield from [Reached(value[token])] if token in value else []
                return
            yield from (Reached(inner, writer) for name, inner in value.items() if _meet(name, token))
        elif isinstance(value, list):
            yield from (Reached(inner, writer) for index, inner in enumerate(value) if _meet(str(index), token))
        elif self.parameter is not None and self.holds_members():
            yield self

    def takes(self, token: str) -> bool:
        """Whether a write may put a member there."""
        if isinstance(self.value, list):
            return token == _APPEND or _is_wild(token) or any(True for _ in self.members(token))
        return self.holds_members()


class Refusal(NamedTuple):
    """Why the world refuses calls whatever was called before: a field of the effect, and the reason."""

    field: str
    reason: str
    empty: bool
    """Whether a placeholder found nothing to choose from: a state may be meant so."""


class UnreachedError(LookupError):
    """No call gets there; its text is the reason."""

    def __init__(self, reason: str, *, empty: bool = False) -> None:
        super().__init__(reason)
        self.empty = empty


class Reach:
    """The values of a task's states, as far as its effects tell."""

    def __init__(self, task: Task) -> None:
        self._start = Reached(task.world.state)
        self._seeded = {seeded.tool for seeded in task.world.responses if seeded.ok}
        self._writes: list[tuple[Sequence[str], Reached]] = []
        waiting = [tool for tool in task.tools if isinstance((tool.effect or {}).get("write"), str)]
        # What one write makes, another may need.
        while able := [tool for tool in waiting if self.refusal(tool) is None]:
            self._writes += [(parse_pointer(tool.effect["write"]), _written(tool)) for tool in able if tool.effect]
            waiting = [tool for tool in waiting if not any(tool is other for other in able)]

    def refusal(self, tool: Tool, arguments: Mapping[str, Json] = _ANY) -> Refusal | None:
        """Why the world refuses every call of a tool that has these arguments; None where it may take one.

        Responses that the task fixes answer reads of what is not there."""
        for field, look in self._demands(tool, arguments):
            try:
                look()
            except UnreachedError as error:
                return Refusal(field, str(error), error.empty)
        return None

    def _demands(self, tool: Tool, arguments: Mapping[str, Json]) -> Iterator[tuple[str, Callable[[], object]]]:
        effect = tool.effect or {}
        if "read" in effect and tool.name not in self._seeded:
            yield "read", partial(self.at, _tokens(effect["read"], arguments))
        for where, template in effect.get("requires", {}).items():
            yield f"requires.{where}", partial(self._required, where, template, arguments)
        if isinstance(effect.get("write"), str):
            yield "write", partial(self._writable, _tokens(effect["write"], arguments))

    def at(self, tokens: Sequence[str]) -> list[Reached]:
        """All that the tokens of a pointer may lead to, where a token with a placeholder may be anything.

        Raises UnreachedError."""
        here = [self._start]
        for depth, token in enumerate(tokens, 1):
            inner = [member for one in here for member in one.members(token)]
            inner += [made for target, made in self._writes if _all_meet(target, tokens[:depth])]
            if not inner:
                raise _unreached(here, tokens[:depth])
            here = inner
        return here

    def given(self, tool: Tool, *member: str) -> list[Reached]:
        """What an effect may answer with, or a member of that; empty where nothing is there."""
        assert tool.effect is not None
        if not tool.writes:
            try:
                return self.at([*parse_pointer(tool.effect["read"]), *member])
            except UnreachedError:
                return []
        here = [_written(tool)]
        for token in member:
            here = [inner for one in here for inner in one.members(token)]
        return here

    def _writable(self, tokens: Sequence[str]) -> None:
        holders = self.at(tokens[:-1])
        if not any(holder.takes(tokens[-1]) for holder in holders):
            raise _unreached(holders, tokens)

    def _required(self, where: str, template: Json, arguments: Mapping[str, Json]) -> None:
        found = self.at(_tokens(where, arguments))
        if not arguments.keys() >= set(template_placeholders(template)):
            return
        wanted = fill(template, arguments)
        if not any(one.is_open or same(one.value, wanted) for one in found):
            there = " or ".join(dict.fromkeys(shown(one.value) for one in found[:3]))
            raise UnreachedError(f"is never {shown(wanted)}, but {there}")


def _written(tool: Tool) -> Reached:
    assert tool.effect is not None
    return Reached(tool.effect["value"], tool)


def _tokens(pointer: str, arguments: Mapping[str, Json]) -> Sequence[str]:
    """The tokens of a pointer, filled where all arguments of one are known."""
    if not arguments:
        return parse_pointer(pointer)
    return [
        filled if isinstance(filled := _filled(token, arguments), str) else compact(filled)
        for token in parse_pointer(pointer)
    ]


def _filled(template: Json, arguments: Mapping[str, Json]) -> Json:
    """A template as the arguments fill it; as it is where one is not known."""
    return fill(template, arguments) if arguments.keys() >= set(template_placeholders(template)) else template


def _is_wild(token: str) -> bool:
    return "{" in token and TEMPLATE_PLACEHOLDER.search(token) is not None


def _meet(one: str, other: str) -> bool:
    """Whether two tokens can be the same; `-` appends, at whatever place that is then."""
    return one == other or _APPEND in (one, other) or _is_wild(one) or _is_wild(other)


def _all_meet(target: Sequence[str], tokens: Sequence[str]) -> bool:
    return len(target) == len(tokens) and all(map(_meet, target, tokens))


def _unreached(holders: Sequence[Reached], tokens: Sequence[str]) -> UnreachedError:
    if not any(holder.holds_members() for holder in holders):
        return UnreachedError(f"holds no members at {_pointer(tokens[:-1])}")
    return UnreachedError(
        f"leads nowhere: neither the state nor a write has {_pointer(tokens)}", empty=_is_wild(tokens[-1])
    )


def _pointer(tokens: Sequence[str]) -> str:
    return "".join(f"/{token.replace('~', '~0').replace('/', '~1')}" for token in tokens)
